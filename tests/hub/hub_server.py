"""A small Hub on 127.0.0.1: as much of its HTTP API as creating a repository, committing files and loading them takes.

Every file is taken inline in the commit (uploadMode "regular"), and kept in memory.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

USER, TOKEN = "somebody", "hf_loopback"


class HubServer:
    """Runs while the `with` block does; `repos` is {"user/name": {path: bytes}}, `log` the requests, as text.

    `commits` is [(repo, summary, [paths])] in the order they came.
    """

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.commits: list[tuple[str, str, list[str]]] = []
        self.log: list[str] = []
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def revision(self, repo: str) -> str:
        """The commit the repository is at, 40 hexadecimal digits."""
        number = sum(name == repo for name, *_ in self.commits)
        return hashlib.sha1(f"{repo} {number}".encode()).hexdigest()

    def environment(self, home) -> dict[str, str]:
        """What a process must have set to take this for the Hub, with its own cache under `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # hf-xet would look for its own endpoint
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "DISABLE_SAFETENSORS_CONVERSION": "1",  # a background request that transformers makes for .bin files
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args) -> None:
        self.server.hub.log.append(f"{self.command} {self.path}")

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        query = parse_qs(urlsplit(self.path).query)
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and (self.command == method or (self.command, method) == ("HEAD", "GET")):
                with self.server.hub.lock:
                    answer(self, *match.groups(), body=body, query=query)
                return
        self._error(404, "EntryNotFound", f"no such route: {self.command} {self.path}")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().strip(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    # -- what it answers --------------------------------------------------------------------------------------------

    def whoami(self, body: bytes, query: dict) -> None:
        if self._allowed():
            self._json({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {"type": "access_token"}})

    def create(self, body: bytes, query: dict) -> None:
        wanted = json.loads(body)
        if not self._allowed():
            return
        repo = f"{wanted.get('organization') or USER}/{wanted['name']}"
        known = repo in self.server.hub.repos
        self.server.hub.repos.setdefault(repo, {})
        url = f"{self.server.hub.endpoint}/{repo}"
        self._json({"url": url, "name": repo, "id": repo}, status=409 if known else 200)

    def preupload(self, repo: str, revision: str, body: bytes, query: dict) -> None:
        if self._allowed() and self._known(repo):
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self._json({"files": files, "commitOid": self.server.hub.revision(repo)})

    def commit(self, repo: str, revision: str, body: bytes, query: dict) -> None:
        if not (self._allowed() and self._known(repo)):
            return
        hub, paths, summary = self.server.hub, [], ""
        for line in filter(None, body.split(b"\n")):
            item = json.loads(line)
            if item["key"] == "header":
                summary = item["value"]["summary"]
            elif item["key"] == "file":
                hub.repos[repo][item["value"]["path"]] = base64.b64decode(item["value"]["content"])
                paths.append(item["value"]["path"])
            elif item["key"] == "deletedFile":
                hub.repos[repo].pop(item["value"]["path"])
            else:
                self._error(400, "BadRequest", f"not understood here: {item['key']}")
                return
        hub.commits.append((repo, summary, paths))
        oid = hub.revision(repo)
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{hub.endpoint}/{repo}/commit/{oid}"})

    def info(self, repo: str, revision: str | None, body: bytes, query: dict) -> None:
        if self._known(repo):
            files = [{"rfilename": path} for path in self.server.hub.repos[repo]]
            sha = self.server.hub.revision(repo)
            self._json({"id": repo, "modelId": repo, "sha": sha, "siblings": files, "private": False, "tags": []})

    def tree(self, repo: str, revision: str, folder: str | None, body: bytes, query: dict) -> None:
        if not self._known(repo):
            return
        prefix = f"{folder}/" if folder else ""
        files = {path: content for path, content in self.server.hub.repos[repo].items() if path.startswith(prefix)}
        if folder and not files:
            self._error(404, "EntryNotFound", f"no folder {folder}")
            return
        self._json(
            [
                {"type": "file", "path": path, "size": len(content), "oid": _etag(content)}
                for path, content in files.items()
            ]
        )

    def paths_info(self, repo: str, revision: str, body: bytes, query: dict) -> None:
        if self._known(repo):
            files = self.server.hub.repos[repo]
            wanted = [path for path in json.loads(body)["paths"] if path in files]
            self._json(
                [{"type": "file", "path": path, "size": len(files[path]), "oid": _etag(files[path])} for path in wanted]
            )

    def resolve(self, repo: str, revision: str, path: str, body: bytes, query: dict) -> None:
        if not self._known(repo):
            return
        content = self.server.hub.repos[repo].get(path)
        if content is None:
            self._error(404, "EntryNotFound", f"no file {path}")
            return
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": self.server.hub.revision(repo)}
        self._send(200, content, "application/octet-stream", headers)

    def validate_yaml(self, body: bytes, query: dict) -> None:
        self._json({"errors": [], "warnings": []})

    # -- how ---------------------------------------------------------------------------------------------------------

    def _allowed(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._error(401, "", "Invalid username or password.")
        return False

    def _known(self, repo: str) -> bool:
        if repo in self.server.hub.repos:
            return True
        self._error(404, "RepoNotFound", "Repository not found")
        return False

    def _error(self, status: int, code: str, message: str) -> None:
        self._send(
            status,
            json.dumps({"error": message}).encode(),
            "application/json",
            {"X-Error-Code": code, "X-Error-Message": message},
        )

    def _json(self, value, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", {})

    def _send(self, status: int, content: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


_REPO = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", rf"/api/models/{_REPO}/preupload/([^/]+)", _Handler.preupload),
    ("POST", rf"/api/models/{_REPO}/commit/([^/]+)", _Handler.commit),
    ("POST", rf"/api/models/{_REPO}/paths-info/([^/]+)", _Handler.paths_info),
    ("GET", rf"/api/models/{_REPO}/tree/([^/]+)(?:/(.+))?", _Handler.tree),
    ("GET", rf"/api/models/{_REPO}(?:/revision/([^/]+))?", _Handler.info),
    ("GET", rf"/{_REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
)
