"""packaging/kubernetes against Kubernetes' own schemas, and against each other."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from edgekit.cli import main

VERSIONS = [
    f"1.{n}" for n in range(28, int(kubernetes_validate.latest_version().split(".")[1]) + 1)
]


@pytest.fixture(scope="session")
def manifests(packaging: Path) -> dict[str, Any]:
    """`Kind/name` to manifest, of the files that the kustomization lists."""
    found: dict[str, Any] = {}
    room = packaging / "kubernetes"
    for name in yaml.safe_load((room / "kustomization.yaml").read_text())["resources"]:
        for data in yaml.safe_load_all((room / name).read_text()):
            found[f"{data['kind']}/{data['metadata']['name']}"] = data
    return found


@pytest.fixture
def workload(manifests: dict[str, Any]) -> Any:
    """A copy of the stateful set."""
    return copy.deepcopy(manifests["StatefulSet/edgekit"])


@pytest.fixture
def pod(workload: Any) -> Any:
    """Its pods."""
    return workload["spec"]["template"]["spec"]


@pytest.fixture
def container(pod: Any) -> Any:
    """The only one of a pod."""
    [container] = pod["containers"]
    return container


def test_every_file_is_listed(packaging: Path, manifests: dict[str, Any]) -> None:
    files = {path.name for path in (packaging / "kubernetes").glob("*.yaml")}
    listed = yaml.safe_load((packaging / "kubernetes/kustomization.yaml").read_text())["resources"]
    assert set(listed) == files - {"kustomization.yaml"}
    assert len(manifests) == 8


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_them(manifests: dict[str, Any], version: str) -> None:
    for data in manifests.values():
        kubernetes_validate.validate(data, version, strict=True)


@pytest.fixture(scope="module")
def schemas(manifests: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those that `kubernetes_validate` carries, as kubeconform reads them: each with all that it
    refers to, and under no other name than its file's."""
    room = tmp_path_factory.mktemp("schemas")
    carried = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    for version in VERSIONS:
        source, out = carried / f"v{version}.0-local-strict", room / f"v{version}.0-strict"
        out.mkdir()
        parts = json.loads((source / "_definitions.json").read_text())["$defs"]
        for data in manifests.values():
            group, _, revision = data["apiVersion"].rpartition("/")
            words = [data["kind"].lower(), group.partition(".")[0], revision]
            name = "-".join(filter(None, words)) + ".json"
            schema = json.loads((source / name).read_text())
            text = json.dumps({k: v for k, v in schema.items() if k != "$id"} | {"$defs": parts})
            (out / name).write_text(text.replace("/api/_definitions.json#", "#"))
    return room


@pytest.mark.skipif(not shutil.which("kubeconform"), reason="kubeconform is not installed")
@pytest.mark.parametrize("version", VERSIONS)
def test_kubeconform_takes_them(
    version: str, packaging: Path, workload: Any, schemas: Path, tmp_path: Path
) -> None:
    place = "{{.NormalizedKubernetesVersion}}{{.StrictSuffix}}/{{.ResourceKind}}{{.KindSuffix}}"
    words = ["kubeconform", "-strict", "-kubernetes-version", f"{version}.0"]
    words += ["-schema-location", f"{schemas}/{place}.json"]
    room = packaging / "kubernetes"
    files = [str(path) for path in room.glob("*.yaml") if path.name != "kustomization.yaml"]
    done = subprocess.run([*words, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    for i, data in enumerate(broken(workload)):
        wrong = tmp_path / f"{i}.yaml"
        wrong.write_text(yaml.safe_dump(data))
        done = subprocess.run([*words, str(wrong)], capture_output=True, text=True, check=False)
        assert done.returncode == 1, data


def broken(workload: Any) -> Iterator[Any]:
    """What a hand does to a file."""
    changes: list[Callable[[Any], Any]] = [
        lambda c: c.update(livenessProb=c.pop("livenessProbe")),
        lambda c: c["ports"][0].update(containerPort="eight thousand"),
        lambda c: c.pop("name"),
        lambda c: c["securityContext"].update(readOnlyRootFileSystem=True),
        lambda c: c["resources"]["limits"].update(memory=["8Gi"]),
    ]
    for change in changes:
        data = copy.deepcopy(workload)
        change(data["spec"]["template"]["spec"]["containers"][0])
        yield data
    yield {**workload, "apiVersion": "apps/v1beta1"}


def test_broken_ones_are_refused(workload: Any) -> None:
    refusals = (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError)
    for data in broken(workload):
        with pytest.raises(refusals):
            kubernetes_validate.validate(data, VERSIONS[-1], strict=True)


def test_pods_keep_to_the_restricted_standard(pod: Any, container: Any) -> None:
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert {k for volume in pod["volumes"] for k in volume} <= {
        "name", "secret", "emptyDir", "persistentVolumeClaim"
    }  # fmt: skip
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    # and beyond it
    assert security["readOnlyRootFilesystem"] is True
    assert pod["automountServiceAccountToken"] is False


def test_pods_get_the_time_that_the_image_drains(
    pod: Any, container: Any, entrypoint: list[str]
) -> None:
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = int(entrypoint[entrypoint.index("--drain") + 1])
    assert pod["terminationGracePeriodSeconds"] >= before + drain + 10


def test_what_the_image_expects_is_mounted(
    workload: Any, pod: Any, container: Any, entrypoint: list[str]
) -> None:
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"] for volume in pod["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in workload["spec"]["volumeClaimTemplates"]}
    assert {mount["name"] for mount in mounts.values()} == volumes
    assert entrypoint[2] in mounts
    assert entrypoint[entrypoint.index("--api-key-file") + 1] in mounts
    assert mounts["/run/keys"]["subPath"] == "keys"


def test_probes_ask_the_port_that_is_served(container: Any, entrypoint: list[str]) -> None:
    [port] = container["ports"]
    assert str(port["containerPort"]) == entrypoint[entrypoint.index("--port") + 1]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[name]["httpGet"] == {"path": "/health", "port": port["name"]}


def test_selectors_select_the_pods(manifests: dict[str, Any], workload: Any) -> None:
    labels = workload["spec"]["template"]["metadata"]["labels"]
    selectors = [
        workload["spec"]["selector"]["matchLabels"],
        manifests["Service/edgekit"]["spec"]["selector"],
        manifests["Service/edgekit-replicas"]["spec"]["selector"],
        manifests["PodDisruptionBudget/edgekit"]["spec"]["selector"]["matchLabels"],
        manifests["NetworkPolicy/edgekit"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector == labels for selector in selectors)
    assert f"Service/{workload['spec']['serviceName']}" in manifests
    [claim] = workload["spec"]["volumeClaimTemplates"]
    assert f"StorageClass/{claim['spec']['storageClassName']}" in manifests
    namespaces = {m["metadata"].get("namespace") for m in manifests.values()}
    assert namespaces == {None, "edgekit"}
    assert "Namespace/edgekit" in manifests


def test_the_image_is_told_only_what_edgekit_knows(entrypoint: list[str]) -> None:
    assert entrypoint[:2] == ["edgekit", "serve"]
    result = CliRunner().invoke(main, ["serve", "--help"])
    for word in entrypoint[2:]:
        assert not word.startswith("--") or word in result.output
