"""What a secure sum costs: 10,000,000 float32 parameters, 10 pods, 3 of them dropped after they shared their seeds.

Pod: from its encoded update to the masked vector. Server: the 7 vectors added, 30 seeds put together, 28 masks taken off.
Beside them what they replace or come with: the plain weighted mean of the same 7 updates (`RunningMean`), and the encoding
of one update in fixed point. A pod has one thread, and the server all cores, since the pods wait for it; vectors are made before
the clock starts. Seconds are medians over the runs.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from promises import Form, Promise, amount, command_line, ratio

from bitfount_model.federation import RunningMean
from bitfount_model.federation.fixed_point import Layout
from bitfount_model.federation.secure_sum import Context, SecurePod, checked_roster, default_threshold, unmasked_sum

PODS, DROPPED = 10, 3
WEIGHT = 1000
PARAMETERS = 10_000_000
POD_SECONDS, SERVER_SECONDS, UPLOAD_RATIO, APART = 0.35, 0.8, 2.01, 2**-25
"""The most of each; the upload in bytes of the same parameters as float32, the mean apart from the plain one."""


def measure(runs: int, form: Form) -> list[Promise]:
    """Rows of pod, server, upload and exactness; every form measures the same."""
    torch.set_num_threads(1)
    found = [one_round(PARAMETERS) for _ in range(runs)]

    def of(name: str) -> list[float]:
        return [each[name] for each in found]

    uploads = [(4e-6 * PARAMETERS, 1e-6 * size) for size in of("upload_bytes")]
    return [
        amount("secure sum of 10M, a pod masks; beside encoding", of("pod"), POD_SECONDS, unit="s", floor=of("encode")),
        amount(
            "secure sum of 10M, the server; beside the plain mean",
            of("server"),
            SERVER_SECONDS,
            unit="s",
            floor=of("plain"),
        ),
        ratio("secure sum of 10M, an upload, beside float32", uploads, UPLOAD_RATIO, unit="MB"),
        amount("secure sum of 10M, apart from the plain mean", of("apart"), APART, unit=""),
    ]


def one_round(parameters: int) -> dict[str, float]:
    """One round: seconds of pod, server, encoding and plain mean; bytes of an upload; how far the means are apart."""
    pods = [f"pod-{number}" for number in range(PODS)]
    survivors = pods[DROPPED:]
    base = {"weight": torch.zeros(parameters)}
    update = {"weight": torch.from_numpy(np.random.default_rng(0).normal(size=parameters).astype(np.float32))}
    layout = Layout(base, pods=PODS, total_weight=PODS * WEIGHT)
    began = time.perf_counter()
    encoded = layout.encode(update, WEIGHT).words
    encode_seconds = time.perf_counter() - began

    identities = {pod: Ed25519PrivateKey.generate() for pod in pods}
    pins = {pod: identity.public_key().public_bytes_raw() for pod, identity in identities.items()}
    context = Context("benchmark", 1, "0" * 64, layout.digest, tuple(pods), default_threshold(PODS))
    secure = {pod: SecurePod(context, pod, identities[pod]) for pod in pods}
    keys = [each.keys() for each in secure.values()]
    sent = [share for each in secure.values() for share in each.shares(keys, pins)]
    vectors, pod_seconds = {}, []
    for pod in survivors:
        began = time.perf_counter()
        vectors[pod] = secure[pod].masked(encoded, pods)
        pod_seconds.append(time.perf_counter() - began)
    answers = [secure[pod].unmask(survivors, [each for each in sent if each.receiver == pod]) for pod in survivors]

    roster = checked_roster(context, keys, pins)
    began = time.perf_counter()
    total = unmasked_sum(context, roster, vectors.items(), answers)
    server_seconds = time.perf_counter() - began

    upload = vectors[survivors[0]].nbytes
    del vectors, encoded
    began = time.perf_counter()
    running = RunningMean(base)
    for pod in survivors:
        running.add(pod, update, WEIGHT)
    plain = running.mean()["weight"]
    plain_seconds = time.perf_counter() - began
    return {
        "pod": statistics.median(pod_seconds),
        "server": server_seconds,
        "encode": encode_seconds,
        "plain": plain_seconds,
        "upload_bytes": upload,
        "apart": float((layout.decode(total).mean["weight"] - plain).abs().max()),
    }


if __name__ == "__main__":
    command_line(measure, __doc__, {Form.QUICK: 3, Form.USUAL: 3, Form.FULL: 7})
