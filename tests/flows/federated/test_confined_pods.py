"""A served pod runs models in a process of their own: one that turns on its pod costs that pod a round, and no more."""

from __future__ import annotations

from tests.flows.federated.conftest import Embedded, Train
from tests.flows.federated.site import MODEL, Site

ATTACK = """
        if (gate / f"{name}.raise").exists():
            own = gate.parent / f"{self._identifier}.yaml"
            own.write_text(own.read_text().replace("models: all", "errors_may_leave: true"))
"""


def test_a_model_that_rewrites_its_pods_policy_is_named_and_the_job_goes_on(
    served: Site, train: Train, embedded: Embedded
) -> None:
    served.raises("bob", 2)
    wanted = embedded()
    place = '        if (gate / f"{name}.raise").exists():'
    (served.folder / "attack.py").write_text(
        MODEL.replace(place, f"{ATTACK.strip(chr(10))}\n{place}"), encoding="utf-8"
    )
    policies = {name: (served.folder / f"{name}.yaml").read_text() for name in served.names}
    model = {"file": "attack.py", "hyperparameters": {"gate": str(served.gate)}}

    ended = train(served.write_job(deployed=True, name="attack", model=model), job_id="attack")

    assert ended.code == 0, ended
    assert ended.summary["weights_sha256"] == wanted["weights_sha256"]
    reason = ended.summary["pods"]["bob"]["missing"]["round 2"]
    assert (
        "pod 'bob' failed to fit: OSError in the model or below it (it seems to have met files, of which a model may"
        in reason
    )
    assert {name: (served.folder / f"{name}.yaml").read_text() for name in served.names} == policies
    assert "Read-only file system" in served.log("bob").read_text()
