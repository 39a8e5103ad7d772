"""What a secure sum costs: 10,000,000 float32 parameters, 10 pods, 3 of them dropped after they shared their seeds.

Pod: from its encoded update to the masked vector. Server: the 7 vectors added, 30 seeds put together, 28 masks taken off.
Beside them what they replace or come with: the plain weighted mean of the same 7 updates (`RunningMean`), and the encoding
of one update in fixed point. A pod has one thread, and the server all cores, since the pods wait for it; vectors are made before
the clock starts. Seconds are medians over the runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation import one_line

from bitfount_model.federation import RunningMean
from bitfount_model.federation.fixed_point import Layout
from bitfount_model.federation.secure_sum import Context, SecurePod, checked_roster, default_threshold, unmasked_sum

PODS, DROPPED = 10, 3
WEIGHT = 1000
PROMISES = {"pod_seconds": 0.35, "server_seconds": 0.8, "upload_ratio": 2.01}
"""The most of each; the upload in bytes of the same parameters as float32."""


def measure(parameters: int) -> dict[str, float]:
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
        "pod_seconds": statistics.median(pod_seconds),
        "server_seconds": server_seconds,
        "encode_seconds": encode_seconds,
        "plain_seconds": plain_seconds,
        "upload_ratio": upload / (4 * parameters),
        "apart": float((layout.decode(total).mean["weight"] - plain).abs().max()),
    }


def main() -> None:
    """Prints a table, and writes it as JSON where asked."""
    parser = argparse.ArgumentParser(description=one_line(__doc__))
    parser.add_argument("--runs", type=int, default=3, help="rounds to take the median of (default: 3)")
    parser.add_argument("--parameters", type=int, default=10_000_000, help="of the model (default: 10000000)")
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = [measure(options.parameters) for _ in range(options.runs)]
    found: dict[str, Any] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    print(f"secure sum, {options.parameters:,} parameters, {PODS} pods, {DROPPED} dropped        found   promise")
    for name, label in (
        ("pod_seconds", "a pod masks its vector, s"),
        ("server_seconds", "the server adds and unmasks, s"),
        ("upload_ratio", "bytes of an upload, in float32's"),
    ):
        met = "met" if found[name] <= PROMISES[name] else "missed"
        print(f"{label:<58}{found[name]:>8.3f}   {PROMISES[name]:.2f} {met}")
    for name, label in (
        ("encode_seconds", "beside it: a pod encodes its update, s"),
        ("plain_seconds", "beside it: the plain mean, s"),
    ):
        print(f"{label:<58}{found[name]:>8.3f}")
    print(f"{'largest difference from the plain mean':<58}{found['apart']:>8.1e}   {2**-25:.1e}")
    if options.json:
        options.json.write_text(json.dumps({**found, "promises": PROMISES}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
