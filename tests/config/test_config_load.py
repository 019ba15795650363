import pytest

from askd_ray.config.load import dump_recipe, load_recipe, recipe_names, with_absolute_paths
from askd_ray.config.renamed import RENAMED
from askd_ray.config.schema import Recipe
from askd_ray.config.train import Train
from askd_ray.errors import AskdError


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntrain:\n  epochs: 2\n  optimizer: {lr: 1.0e-3}\ndata:\n  sources:\n  - path: clips\n")
    return str(path)


def test_overrides_win_over_the_file_and_the_rest_stays(recipe_file):
    recipe = load_recipe(
        recipe_file, ["train.optimizer.lr=1e-4", "train.workers.gpu=true", "student.decoder_layers=[0, 3]"]
    )
    assert recipe.train.optimizer.lr == 1e-4
    assert recipe.train.workers.gpu is True
    assert recipe.student.decoder_layers == (0, 3)
    assert recipe.train.epochs == 2
    assert recipe.data.sources[0].path == "clips"


def test_sources_in_one_override(recipe_file):
    recipe = load_recipe(recipe_file, ["data.sources=[{path: a, domain: calls}, {path: b.tar, kind: webdataset}]"])
    assert [(s.path, s.kind, s.domain) for s in recipe.data.sources] == [
        ("a", "manifest", "calls"),
        ("b.tar", "webdataset", "default"),
    ]


def test_null_in_an_override(recipe_file):
    assert load_recipe(recipe_file, ["student.decoder_layers=null"]).student.decoder_layers is None


def test_what_is_dumped_is_what_was_loaded(tmp_path, recipe_file):
    recipe = load_recipe(
        recipe_file, ["train.optimizer.lr=3e-5", "window.train_silence_s=[0.2, 0.4]", "student.init=wheel:base"]
    )
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(dump_recipe(recipe))
    assert load_recipe(str(dumped)) == recipe


def test_recipes_of_the_package_load():
    for name in recipe_names():
        assert load_recipe(name).name


def test_recipes_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().name = "other"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", r"unknown key 'train\.epoch': allowed here are .*batching.*; did you mean 'epochs'\?"),
        ("trian.epochs=3", r"unknown key 'trian': allowed here are .*; did you mean 'train'\?"),
        ("data.sources=[{pth: x}]", r"'data\.sources\.0\.pth': allowed here .*; did you mean 'path'\?|Field required"),
        ("train.epochs=0", r"train\.epochs = 0: .*greater than 0"),
        ("train.workers.count=0", r"train\.workers\.count = 0: .*greater than or equal to 1"),
        ("train.workers.count=many", r"train\.workers\.count = 'many': .*integer"),
        (
            "train={batching: {micro_batches: 2}, workers: {count: 3}}",
            r"train: workers\.count = 3 exceeds batching\.micro_batches = 2",
        ),
        ("train.workers={count: 2, min_count: 3}", r"train\.workers: min_count = 3 exceeds count = 2"),
        ("train.workers={parallel: fsdp}", r"train\.workers: parallel = 'fsdp' would be ignored: there is one worker"),
        ("train.use_gpu=true", r"train\.use_gpu is called train\.workers\.gpu now"),
        ("train.workers=2", r": train\.workers is called train\.workers\.count now"),
        (
            "train={workers: 2, lr: 0.1}",
            r"train\.workers is called train\.workers\.count now, train\.lr is called train\.o",
        ),
        (
            "tune.space={train.lr: [1.0]}",
            r"tune\.space = .*train\.lr is called train\.optimizer\.lr now|train\.lr is called",
        ),
        ("train.optimizer.frozen_until={encoder: 1, decoder: 0.5, embeddings: 0.1}", r"one must be 0"),
        ("train.optimizer.lr=fast", r"train\.optimizer\.lr = 'fast': .*number"),
        ("evaluate.speculative=true", r"evaluate\.speculative: speculative decoding is not measured any more: remove"),
        (
            "objective.teacher_weight.schedule=linaer",
            r"objective\.teacher_weight\.schedule = 'linaer': .*'linear'.*; did you mean 'linear'\?",
        ),
        ("name=../up", r"name = '\.\./up': .*pattern"),
        ("data.max_duration_s=31", r"data\.max_duration_s = 31: .*less than or equal to 30"),
        ("data.dev_share=0.95", r"data: dev_share \+ test_share must be below 1"),
        ("window.train_silence_s=[2, 1]", r"window: train_silence_s is \[min, max\]"),
        ("train.epochs", r"write it as a\.b=value"),
        ("name.deep=1", r"--set name\.deep: name is a value, not a section"),
        ("data.sources=[{", r"--set data\.sources=\[\{ is not YAML"),
    ],
)
def test_mistakes_name_the_key_what_is_allowed_and_a_close_match(recipe_file, override, message):
    with pytest.raises(AskdError, match=message) as caught:
        load_recipe(recipe_file, [override])
    assert "\n" not in str(caught.value)


def test_new_names_of_keys_exist_and_old_ones_do_not():
    train = Train()
    for old, new in RENAMED.items():
        _, section, name = new.split(".")
        assert hasattr(getattr(train, section), name)
        assert old == "train.workers" or old.removeprefix("train.") not in Train.model_fields


def test_unknown_recipe_and_missing_file(tmp_path):
    with pytest.raises(AskdError, match=r"no recipe 'dmo': give a \.yaml file or one of"):
        load_recipe("dmo")
    with pytest.raises(AskdError, match=r"nowhere\.yaml does not exist"):
        load_recipe(str(tmp_path / "nowhere.yaml"))


@pytest.mark.parametrize("text", ["- a\n- b\n", "", "just words\n"])
def test_yaml_that_is_no_recipe(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(AskdError, match=r"expected a mapping of keys to values"):
        load_recipe(str(path))


def test_broken_yaml(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("train: {epochs: 3\n")
    with pytest.raises(AskdError, match=r"r\.yaml is not YAML") as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_no_text(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AskdError, match=r"r\.yaml is not"):
        load_recipe(str(path))


def test_credentials_are_neither_written_nor_shown():
    roots = ["runs_root=s3://key:secret@bucket/runs", "data_root=s3://key:secret@bucket/data?region=eu"]
    places = [*roots, "data.sources=[{path: 's3://key:secret@bucket/x'}]"]
    recipe = load_recipe("demo", places)
    assert recipe.data_root == "s3://key:secret@bucket/data?region=eu"
    written = dump_recipe(recipe)
    assert "secret" not in written
    assert "runs_root: s3://bucket/runs" in written
    assert "data_root: s3://bucket/data?region=eu" in written and "path: s3://bucket/x" in written
    with pytest.raises(AskdError, match=r"data\.sources\.0 = 's3://bucket/x': ") as caught:
        load_recipe("demo", ["data.sources=['s3://key:secret@bucket/x']"])
    assert "secret" not in str(caught.value)


def test_paths_and_secrets_of_an_evaluation(tmp_path, monkeypatch):
    (tmp_path / "student").mkdir()
    values = {
        "sets": [{"name": "a", "path": "s3://KEY:SECRET@bucket/calls"}, {"name": "b", "path": "calls"}],
        "models": {"mine": "student", "hub": "openai/whisper-tiny", "theirs": "http://me:pass@host/v1#x"},
        "conditions": ["noise@10"],
        "noise_files": "noise/*.wav",
    }
    monkeypatch.chdir(tmp_path)
    placed = with_absolute_paths(Recipe.model_validate({"evaluate": values})).evaluate
    assert [s.path for s in placed.sets] == ["s3://KEY:SECRET@bucket/calls", str(tmp_path / "calls")]
    assert placed.models == values["models"] | {"mine": str(tmp_path / "student")}
    assert placed.noise_files == str(tmp_path / "noise/*.wav")
    written = dump_recipe(Recipe(evaluate=placed))
    assert "SECRET" not in written and "pass" not in written and "s3://bucket/calls" in written


LOCAL = ["augment.noise.files", "augment.reverb.files", "evaluate.noise_files", "tracking.mlflow"]
URIS = [
    "s3://bucket/x",
    "s3:/bucket/x",
    "S3://bucket/x",
    "gs://bucket/x",
    "hf://datasets/me/calls",
    "file:///tmp/x",
    "~nobody9/x",
]


@pytest.mark.parametrize("uri", URIS)
@pytest.mark.parametrize("setting", LOCAL)
def test_what_lies_on_a_disk_is_no_uri(setting: str, uri: str):
    needs = ["augment.noise.share=0.5", "augment.reverb.share=0.5", "evaluate.non_speech=true"]
    with pytest.raises(AskdError) as caught:
        load_recipe("demo", [*needs, f"{setting}={uri}"])
    line = str(caught.value)
    assert setting.rpartition(".")[0] in line and "\n" not in line
    assert "path on this machine" in line or "no home folder" in line or "mlflow is a folder, or the address" in line


@pytest.mark.parametrize(
    "uri", ["hf://datasets/me/calls", "s3:/bucket/x", "S3://bucket/x", "http://host/x", "file:///x", "~nobody9"]
)
def test_what_is_written_lies_on_a_disk_or_a_store(uri: str):
    for root in ("data_root", "runs_root"):
        with pytest.raises(AskdError, match=rf"{root} = .*(a path is allowed, or s3://\.\.\. or gs://|no home folder)"):
            load_recipe("demo", [f"{root}={uri}"])
        for allowed in ("~/data", "data", "s3://key:secret@bucket/x", "gs://bucket/x"):
            assert getattr(load_recipe("demo", [f"{root}={allowed}"]), root) == allowed


@pytest.mark.parametrize("uri", ["s3:/bucket/x", "HF://datasets/me/calls", "https://host/x", "file:///x"])
def test_what_is_read_lies_on_a_disk_a_store_or_the_hub(uri: str):
    with pytest.raises(AskdError, match=r"path = .*: a path is allowed, or s3://\.\.\. or gs://\.\.\. or hf://"):
        load_recipe("demo", [f"data.sources=[{{path: '{uri}'}}]"])
    with pytest.raises(AskdError, match=r"path = .*: a path is allowed"):
        load_recipe("demo", [f"evaluate.sets=[{{name: x, path: '{uri}'}}]"])
    for allowed in ("cache:ivr", "hf://datasets/me/calls", "~/clips", "s3://bucket/x"):
        assert load_recipe("demo", [f"data.sources=[{{path: '{allowed}'}}]"]).data.sources[0].path == allowed
