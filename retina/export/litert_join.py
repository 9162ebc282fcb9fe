"""Joins two LiteRT models into one: what the first gives is what the second takes.

The converter quantises a whole model or nothing of it. An int8 network must not drag the arithmetic of boxes along (a
256th of an image's width is no box), so that both are converted apart and their flatbuffers joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def join(first: bytes, second: bytes, *, whole: str, alone: str) -> bytes:
    """A model with two signatures: `whole`, the first model followed by the second, and `alone`, the first.

    Both models have one signature each. An input of the second is fed by the first's output of that name, or else by
    its input of that name; what is neither is an input of the whole. Constants are shared between the signatures.
    """
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    a, b = (flatbuffer_utils.convert_bytearray_to_object(bytearray(model)) for model in (first, second))
    ahead, behind = a.signatureDefs[0], b.signatureDefs[0]
    network = a.subgraphs[ahead.subgraphIndex]
    tail = b.subgraphs[behind.subgraphIndex]
    _renumber(b, buffers=len(a.buffers), codes=len(a.operatorCodes), subgraphs=len(a.subgraphs))

    given = _by_name(ahead.inputs) | _by_name(ahead.outputs)
    wanted = _by_name(behind.inputs)
    offset = len(network.tensors)
    place = {index: index + offset for index in range(len(tail.tensors))}
    place |= {index: given[name] for name, index in wanted.items() if name in given}
    for operator in tail.operators:
        operator.inputs, operator.outputs = (_moved(row, place) for row in (operator.inputs, operator.outputs))
        operator.intermediates = _moved(operator.intermediates, place)

    joined = schema.SubGraphT()
    joined.name = whole.encode()
    joined.tensors = [*network.tensors, *tail.tensors]
    joined.operators = [*network.operators, *tail.operators]
    further = {name: place[index] for name, index in wanted.items() if name not in given}
    inputs = {**_by_name(ahead.inputs), **further}
    outputs = {name: place[index] for name, index in _by_name(behind.outputs).items()}
    joined.inputs, joined.outputs = list(inputs.values()), list(outputs.values())

    a.buffers += b.buffers
    a.operatorCodes += b.operatorCodes
    a.subgraphs += b.subgraphs
    # The second model's main subgraph is part of the joined one, whose place it takes; the first interpreter call
    # without a signature runs subgraph 0, so the whole goes there.
    a.subgraphs[a.subgraphs.index(tail)] = network
    a.subgraphs[a.subgraphs.index(network)] = joined
    a.signatureDefs = [
        _signature(schema, whole, inputs, outputs, a.subgraphs.index(joined)),
        _signature(schema, alone, _by_name(ahead.inputs), _by_name(ahead.outputs), a.subgraphs.index(network)),
    ]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(a))


def _renumber(model: Any, *, buffers: int, codes: int, subgraphs: int) -> None:
    """Makes the model's numbers those that its parts will have behind another model's."""
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer += buffers
        for operator in graph.operators:
            operator.opcodeIndex += codes
            options = operator.builtinOptions
            for name in ("condSubgraphIndex", "bodySubgraphIndex"):
                if hasattr(options, name):
                    setattr(options, name, getattr(options, name) + subgraphs)


def _moved(indices: Sequence[int] | None, place: Mapping[int, int]) -> list[int] | None:
    """-1 stands for an optional input that is not there."""
    return None if indices is None else [place.get(int(index), -1) for index in indices]


def _by_name(maps: Sequence[Any]) -> dict[str, int]:
    return {one.name.decode(): one.tensorIndex for one in maps}


def _signature(schema: Any, key: str, inputs: Mapping[str, int], outputs: Mapping[str, int], subgraph: int) -> Any:
    made = schema.SignatureDefT()
    made.signatureKey, made.subgraphIndex = key.encode(), subgraph
    for name, values in (("inputs", inputs), ("outputs", outputs)):
        maps = []
        for key_, index in values.items():
            one = schema.TensorMapT()
            one.name, one.tensorIndex = key_.encode(), index
            maps.append(one)
        setattr(made, name, maps)
    return made
