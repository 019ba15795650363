"""Whisper's languages, and the conversion of their names to codes: ``en``, ``EN``, ``en-US``, ``english``."""

import langcodes
from langcodes.tag_parser import LanguageTagError

from askd_ray.errors import AskdError, did_you_mean

LANGUAGE_NAMES: dict[str, str] = {
    "en": "english",
    "zh": "chinese",
    "de": "german",
    "es": "spanish",
    "ru": "russian",
    "ko": "korean",
    "fr": "french",
    "ja": "japanese",
    "pt": "portuguese",
    "tr": "turkish",
    "pl": "polish",
    "ca": "catalan",
    "nl": "dutch",
    "ar": "arabic",
    "sv": "swedish",
    "it": "italian",
    "id": "indonesian",
    "hi": "hindi",
    "fi": "finnish",
    "vi": "vietnamese",
    "he": "hebrew",
    "uk": "ukrainian",
    "el": "greek",
    "ms": "malay",
    "cs": "czech",
    "ro": "romanian",
    "da": "danish",
    "hu": "hungarian",
    "ta": "tamil",
    "no": "norwegian",
    "th": "thai",
    "ur": "urdu",
    "hr": "croatian",
    "bg": "bulgarian",
    "lt": "lithuanian",
    "la": "latin",
    "mi": "maori",
    "ml": "malayalam",
    "cy": "welsh",
    "sk": "slovak",
    "te": "telugu",
    "fa": "persian",
    "lv": "latvian",
    "bn": "bengali",
    "sr": "serbian",
    "az": "azerbaijani",
    "sl": "slovenian",
    "kn": "kannada",
    "et": "estonian",
    "mk": "macedonian",
    "br": "breton",
    "eu": "basque",
    "is": "icelandic",
    "hy": "armenian",
    "ne": "nepali",
    "mn": "mongolian",
    "bs": "bosnian",
    "kk": "kazakh",
    "sq": "albanian",
    "sw": "swahili",
    "gl": "galician",
    "mr": "marathi",
    "pa": "punjabi",
    "si": "sinhala",
    "km": "khmer",
    "sn": "shona",
    "yo": "yoruba",
    "so": "somali",
    "af": "afrikaans",
    "oc": "occitan",
    "ka": "georgian",
    "be": "belarusian",
    "tg": "tajik",
    "sd": "sindhi",
    "gu": "gujarati",
    "am": "amharic",
    "yi": "yiddish",
    "lo": "lao",
    "uz": "uzbek",
    "fo": "faroese",
    "ht": "haitian creole",
    "ps": "pashto",
    "tk": "turkmen",
    "nn": "nynorsk",
    "mt": "maltese",
    "sa": "sanskrit",
    "lb": "luxembourgish",
    "my": "myanmar",
    "bo": "tibetan",
    "tl": "tagalog",
    "mg": "malagasy",
    "as": "assamese",
    "tt": "tatar",
    "haw": "hawaiian",
    "ln": "lingala",
    "ha": "hausa",
    "ba": "bashkir",
    "jw": "javanese",
    "su": "sundanese",
    "yue": "cantonese",
}
"""The names of Whisper's languages by code, as in openai/whisper's tokenizer.py."""

_OTHER_NAMES = {
    "burmese": "my",
    "valencian": "ca",
    "flemish": "nl",
    "haitian": "ht",
    "letzeburgesch": "lb",
    "pushto": "ps",
    "panjabi": "pa",
    "moldavian": "ro",
    "moldovan": "ro",
    "sinhalese": "si",
    "castilian": "es",
    "mandarin": "zh",
}
# Whisper's code where BCP 47 prefers another one.
_WHISPER_CODES = {"jv": "jw", "fil": "tl", "nb": "no"}
_MAX_QUOTED_CHARS = 50


def language_code(name: str) -> str:
    """Return Whisper's code of a language from a code, a BCP 47 tag (``en-US``, ``en_US``), or an English name.

    Case and surrounding white space do not matter. Codes are those of ISO 639-1, -2 or -3 (``en``, ``eng``). Only the
    language part of a tag is used: Whisper has no regions and no scripts.

    Raises :class:`AskdError` for a name that is not one of Whisper's languages, also for an empty one.
    """
    folded = " ".join(name.casefold().replace("_", " ").split())
    codes = {language: code for code, language in LANGUAGE_NAMES.items()} | _OTHER_NAMES
    code = folded if folded in LANGUAGE_NAMES else codes.get(folded) or _code_of_tag(folded.replace(" ", "-"))
    if code is None:
        quoted = name if len(name) <= _MAX_QUOTED_CHARS else f"{name[:_MAX_QUOTED_CHARS]}..."
        raise AskdError(
            f"language {quoted!r} is none of Whisper's {len(LANGUAGE_NAMES)}: a code (en), a tag (en-US) or an English "
            f"name (english) is allowed{did_you_mean(folded[:_MAX_QUOTED_CHARS], [*codes, *LANGUAGE_NAMES])}"
        )
    return code


def _code_of_tag(tag: str) -> str | None:
    """Return Whisper's code for a BCP 47 tag, or None."""
    try:
        language = langcodes.Language.get(langcodes.standardize_tag(tag, macro=True)).language
    except LanguageTagError:
        return None
    code = _WHISPER_CODES.get(language or "", language)
    return code if code in LANGUAGE_NAMES else None
