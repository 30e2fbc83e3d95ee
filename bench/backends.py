"""One gateway process that asks several authorization servers: the shipped configuration, with a listener for each.

Two processes of one gateway differ by some percent for as long as they live (where their memory lies, for example),
which is as much as is to be measured between two servers that they ask. Access logs are written to nowhere, or whoever
reads them would share a core with the servers.
"""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.e2e.gateways import Envoy, Gateway, Nginx, free_port

FILE_LOG = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
STDOUT = "access_log /dev/stdout "
WORKERS = "worker_processes auto;"


class Backend(NamedTuple):
    """An authorization server, by its port or its unix socket."""

    port: int
    socket: Path | None = None


class Forked(Gateway):
    """A gateway that asks a server of its own behind each of ``ports``."""

    def __init__(self, folder: Path, *, backends: list[Backend], upstream_port: int) -> None:
        super().__init__(folder, authz_port=backends[0].port, upstream_port=upstream_port)
        self.backends: dict[int, Backend] = {}
        for backend in backends:
            while (port := free_port()) in self.backends:
                pass
            self.backends[port] = backend

    @property
    def urls(self) -> list[str]:
        """Where each of the backends is asked, in their order."""
        return [f"http://127.0.0.1:{port}" for port in self.backends]


class ForkedEnvoy(Forked, Envoy):
    """A listener and a cluster for each."""

    def run(self) -> None:
        self._fork()
        Envoy.run(self)

    def _fork(self) -> None:
        file = self.folder / "envoy.yaml"
        config: dict[str, Any] = yaml.safe_load(file.read_text())
        resources = config["static_resources"]
        (edge,) = resources["listeners"]
        (sidecar,) = (cluster for cluster in resources["clusters"] if cluster["name"] == "sidecar")
        resources["listeners"] = []
        for port, backend in self.backends.items():
            name = f"sidecar-{port}"
            listener, cluster = copy.deepcopy(edge), copy.deepcopy(sidecar)
            listener["name"] = f"edge-{port}"
            listener["address"]["socket_address"]["port_value"] = port
            manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
            manager["http_filters"][0]["typed_config"]["http_service"]["server_uri"]["cluster"] = name
            (log,) = manager["access_log"]
            log["name"] = "envoy.access_loggers.file"
            log["typed_config"] |= {"@type": FILE_LOG, "path": os.devnull}
            cluster["name"] = cluster["load_assignment"]["cluster_name"] = name
            (group,) = cluster["load_assignment"]["endpoints"]
            address = {"socket_address": {"address": "127.0.0.1", "port_value": backend.port}}
            if backend.socket is not None:
                address = {"pipe": {"path": str(backend.socket)}}
            group["lb_endpoints"][0]["endpoint"]["address"] = address
            resources["listeners"].append(listener)
            resources["clusters"].append(cluster)
        file.write_text(json.dumps(config))


class ForkedNginx(Forked, Nginx):
    """A server and an upstream for each, and one worker.

    Of one for each core of the machine, who starts it may see the first only, and leave the others where they began.
    """

    def run(self) -> None:
        self._fork()
        Nginx.run(self)

    def _fork(self) -> None:
        main, http, server = (self.folder / name for name in ("nginx.conf", "quota-http.conf", "quota-server.conf"))
        found = re.search(r"^    server \{\n.*?^    \}\n", main.read_text(), re.MULTILINE | re.DOTALL)
        upstream = re.search(r"^upstream quota_sidecar \{\n.*?^\}\n", http.read_text(), re.MULTILINE | re.DOTALL)
        assert found is not None
        assert upstream is not None
        servers, upstreams = "", ""
        for port, backend in self.backends.items():
            at = f"unix:{backend.socket}" if backend.socket is not None else f"127.0.0.1:{backend.port}"
            own = re.sub(r"server [^;]+;", f"server {at};", upstream[0], count=1)
            upstreams += own.replace("quota_sidecar", f"quota_{port}")
            own = found[0].replace(f"listen 127.0.0.1:{self.port};", f"listen 127.0.0.1:{port};")
            servers += own.replace("quota-server.conf", f"quota-server-{port}.conf")
            (self.folder / f"quota-server-{port}.conf").write_text(
                server.read_text().replace("//quota_sidecar/", f"//quota_{port}/")
            )
        text = main.read_text().replace(found[0], servers)
        for shipped, here in ((STDOUT, f"access_log {os.devnull} "), (WORKERS, "worker_processes 1;")):
            assert shipped in text
            text = text.replace(shipped, here)
        main.write_text(text)
        http.write_text(http.read_text().replace(upstream[0], upstreams))


FORKED: dict[str, type[ForkedEnvoy | ForkedNginx]] = {"envoy": ForkedEnvoy, "nginx": ForkedNginx}
