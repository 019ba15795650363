"""Helper of the tests of benchmarks/engines.py: small models in the layouts of sherpa-onnx, which say ``yes``."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Value = tuple[str, int, list[str | int]]
Node = tuple[str, list[str], list[str], dict[str, int | list[int]]]


def write(
    file: Path,
    inputs: list[Value],
    outputs: list[Value],
    nodes: list[Node],
    weights: dict[str, list[float] | list[list[float]]],
    metadata: dict[str, str],
) -> None:
    """Write an ONNX file that ONNX Runtime has been able to read since 2020."""
    graph = helper.make_graph(
        [helper.make_node(kind, before, after, **attributes) for kind, before, after, attributes in nodes],
        "model",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    helper.set_model_props(model, metadata)
    file.write_bytes(model.SerializeToString())


def write_tokens(folder: Path, tokens: tuple[str, ...]) -> None:
    """Write tokens.txt."""
    lines = [f"{token} {number}\n" for number, token in enumerate(tokens)]
    (folder / "tokens.txt").write_text("".join(lines), encoding="utf-8")


def zipformer_ctc(folder: Path) -> None:
    """Write a CTC model whose bias chooses ``▁yes`` in each frame: the repetitions are one token."""
    write_tokens(folder, ("<blk>", "▁yes", "▁no"))
    nodes: list[Node] = [
        ("MatMul", ["x", "weight"], ["product"], {}),
        ("Add", ["product", "bias"], ["logits"], {}),
        ("LogSoftmax", ["logits"], ["log_probs"], {"axis": -1}),
        ("Identity", ["x_lens"], ["log_probs_len"], {}),
    ]
    write(
        folder / "model.onnx",
        [("x", FLOAT, ["N", "T", 80]), ("x_lens", INT64, ["N"])],
        [("log_probs", FLOAT, ["N", "T", 3]), ("log_probs_len", INT64, ["N"])],
        nodes,
        {"weight": [[0.0] * 3] * 80, "bias": [0.0, 5.0, 0.0]},
        {"model_type": "zipformer2_ctc"},
    )


def nemo_ctc(folder: Path) -> None:
    """Write the same with NeMo's axes, ``(batch, n_mels, n_frames)``, and its blank, the last token."""
    write_tokens(folder, ("▁yes", "▁no", "<blk>"))
    nodes: list[Node] = [
        ("Transpose", ["audio_signal"], ["x"], {"perm": [0, 2, 1]}),
        ("MatMul", ["x", "weight"], ["product"], {}),
        ("Add", ["product", "bias"], ["logits"], {}),
        ("LogSoftmax", ["logits"], ["logprobs"], {"axis": -1}),
    ]
    write(
        folder / "model.int8.onnx",
        [("audio_signal", FLOAT, ["N", 80, "T"]), ("length", INT64, ["N"])],
        [("logprobs", FLOAT, ["N", "T", 3])],
        nodes,
        {"weight": [[0.0] * 3] * 80, "bias": [5.0, 0.0, 0.0]},
        {
            "model_type": "EncDecCTCModelBPE",
            "vocab_size": "2",
            "subsampling_factor": "1",
            "normalize_type": "per_feature",
        },
    )


def transducer(folder: Path) -> None:
    """Write a transducer whose joiner adds the states: after a blank comes ``▁yes``, after that only blanks."""
    write_tokens(folder, ("<blk>", "▁yes", "▁no"))
    write(
        folder / "encoder-epoch-1-avg-1.onnx",
        [("x", FLOAT, ["N", "T", 80]), ("x_lens", INT64, ["N"])],
        [("encoder_out", FLOAT, ["N", "T", 3]), ("encoder_out_lens", INT64, ["N"])],
        [("MatMul", ["x", "weight"], ["encoder_out"], {}), ("Identity", ["x_lens"], ["encoder_out_lens"], {})],
        {"weight": [[0.0] * 3] * 80},
        {"model_type": "zipformer2"},
    )
    nodes: list[Node] = [
        ("Gather", ["embedding", "y"], ["both"], {"axis": 0}),
        ("ReduceSum", ["both", "axis"], ["decoder_out"], {"keepdims": 0}),
    ]
    axis: Node = ("Constant", [], ["axis"], {"value_ints": [1]})
    write(
        folder / "decoder-epoch-1-avg-1.onnx",
        [("y", INT64, ["N", 2])],
        [("decoder_out", FLOAT, ["N", 3])],
        [axis, *nodes],
        {"embedding": [[0.0, 1.0, 0.0], [5.0, 0.0, 0.0], [0.0] * 3]},
        {"vocab_size": "3", "context_size": "2"},
    )
    write(
        folder / "joiner-epoch-1-avg-1.onnx",
        [("encoder_out", FLOAT, ["N", 3]), ("decoder_out", FLOAT, ["N", 3])],
        [("logit", FLOAT, ["N", 3])],
        [("Add", ["encoder_out", "decoder_out"], ["logit"], {})],
        {},
        {"joiner_dim": "3"},
    )
