"""A server that answers huggingface_hub as the hub does: uploading and downloading models, reading data sets by ranges.

Private repositories, branches, commits, files in Git and in LFS, and the error codes that the client knows, all in
memory. `trouble` makes it answer 500, accept and say nothing, send a byte too few of a range, or all of a file:
from the start, or to what matches `troubled`.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_owner"


@contextmanager
def local_hub(monkeypatch, cache):
    """Run a hub, and point the client of this process to it: no proxy, no Xet, a cache of its own, and a token."""
    from huggingface_hub import constants

    hub = SimpleNamespace(repositories={}, uploads={}, over=threading.Event())
    hub.trouble, hub.troubled, hub.asked, hub.ranges = None, ".*", [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    hub.stop = lambda: (hub.over.set(), server.shutdown(), server.server_close())
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield hub
    if not hub.over.is_set():
        hub.stop()


def put(hub, name, files, private=False, gated=False):
    """Put files into a repository without a client; returns the commit."""
    repository = hub.repositories.setdefault(name, {"private": private, "gated": gated, "branches": {}, "commits": {}})
    return commit(repository, "main", files)


def commit(repository, branch, files):
    content = repository["commits"].get(repository["branches"].get(branch), {}) | files
    text = repr((branch, sorted((name, hashlib.sha1(data).hexdigest()) for name, data in content.items())))
    oid = hashlib.sha1(text.encode()).hexdigest()
    repository["commits"][oid] = content
    repository["branches"][branch] = oid
    return oid


class Handler(BaseHTTPRequestHandler):
    hub: SimpleNamespace

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content_Length": len(content)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handle_request(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        self.hub.ranges.append(self.headers.get("Range"))
        troubled = self.hub.trouble and re.match(self.hub.troubled, path)
        if troubled and self.hub.trouble == "silent":
            return self.hub.over.wait(60)
        if troubled and self.hub.trouble not in ("short", "whole"):
            return self.answer(self.hub.trouble)
        for pattern, method in ROUTES.items():
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return method(self, *match.groups())
        return self.answer(404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    @property
    def owner(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, name):
        """A repository that the asking one may see; else the answer is sent, and None returned."""
        found = self.hub.repositories.get(name)
        if found is None or (found["private"] and not self.owner):
            self.answer(401, X_Error_Code="RepoNotFound")
        elif found["gated"]:
            self.answer(403, X_Error_Code="GatedRepo")
        else:
            return found

    def files(self, name, revision):
        """(Commit, its files) of a repository; else the answer is sent, and (None, None) returned."""
        if found := self.repository(name):
            oid = found["branches"].get(revision, revision)
            if oid in found["commits"]:
                return oid, found["commits"][oid]
            self.answer(404, X_Error_Code="RevisionNotFound")
        return None, None

    def validate(self):
        self.body()
        self.answer(200, {"errors": [], "warnings": []})

    def create(self):
        asked = json.loads(self.body())
        name = f"{asked['organization']}/{asked['name']}"
        if not self.owner:
            return self.answer(401)
        if name in self.hub.repositories:
            return self.answer(409, {"url": f"{self.hub.address}/{name}"})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        put(self.hub, name, {".gitattributes": b""}, private=private)
        self.answer(200, {"url": f"{self.hub.address}/{name}"})

    def branch(self, name, branch):
        self.body()
        if found := self.repository(name):
            if branch in found["branches"]:
                return self.answer(409)
            found["branches"][branch] = found["branches"]["main"]
            self.answer(200)

    def preupload(self, name, _):
        asked = json.loads(self.body())["files"]
        mode = {True: "lfs", False: "regular"}
        told = [{"path": f["path"], "uploadMode": mode[f["path"].endswith(".safetensors")]} for f in asked]
        if self.repository(name):
            self.answer(200, {"files": [file | {"shouldIgnore": False} for file in told]})

    def batch(self, name):
        asked = json.loads(self.body())["objects"]
        actions = [{"upload": {"href": f"{self.hub.address}/upload/{object['oid']}"}} for object in asked]
        objects = [object | {"actions": action} for object, action in zip(asked, actions, strict=True)]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid):
        content = self.body()
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.uploads[oid] = content
        self.answer(200)

    def commit(self, name, branch):
        lines = [json.loads(line) for line in self.body().splitlines()]
        if not self.owner:
            return self.answer(403)
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
        if found := self.repository(name):
            oid = commit(found, branch, files)
            self.answer(200, {"commitOid": oid, "commitUrl": f"{self.hub.address}/{name}/commit/{oid}"})

    def info(self, name, revision=None):
        oid, files = self.files(name, revision or "main")
        if oid:
            self.answer(200, {"id": name, "sha": oid, "siblings": [{"rfilename": file} for file in files]})

    def folder(self, name, revision, folder=None):
        """What lies directly in a folder of a data set."""
        oid, files = self.files(name, revision)
        if oid:
            start = f"{folder}/" if folder else ""
            names = {path.removeprefix(start).split("/")[0] for path in files if path.startswith(start)}
            entries = [{"path": start + name, "size": len(files.get(start + name, b"")), "oid": oid} for name in names]
            kinds = [{"type": "file" if entry["path"] in files else "directory"} for entry in entries]
            self.answer(200, [entry | kind for entry, kind in zip(entries, kinds, strict=True)])

    def tree(self, name, revision):
        oid, files = self.files(name, revision)
        if oid:
            entries = [{"type": "file", "path": path, "size": len(content)} for path, content in files.items()]
            hashes = [hashlib.sha1(content).hexdigest() for content in files.values()]
            self.answer(200, [entry | {"oid": found} for entry, found in zip(entries, hashes, strict=True)])

    def resolve(self, name, revision, path):
        oid, files = self.files(name, revision)
        if oid and path not in files:
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
        elif oid and self.hub.trouble == "whole":
            self.answer(200, files[path])
        elif oid and (asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))):
            first, last = map(int, asked.groups())
            short = self.hub.trouble == "short"
            self.answer(206, files[path][first : last + 1 - short])
        elif oid:
            self.answer(200, files[path], ETag=f'"{hashlib.sha256(files[path]).hexdigest()}"', X_Repo_Commit=oid)


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = {
    r"POST /api/validate-yaml": Handler.validate,
    r"POST /api/repos/create": Handler.create,
    rf"POST /api/models/{NAME}/branch/(.+)": Handler.branch,
    rf"POST /api/models/{NAME}/preupload/(.+)": Handler.preupload,
    rf"POST /api/models/{NAME}/commit/(.+)": Handler.commit,
    rf"POST /{NAME}\.git/info/lfs/objects/batch": Handler.batch,
    r"PUT /upload/(\w+)": Handler.upload,
    rf"GET /api/models/{NAME}": Handler.info,
    rf"GET /api/models/{NAME}/revision/(.+)": Handler.info,
    rf"GET /api/models/{NAME}/tree/([^/]+)": Handler.tree,
    rf"GET /api/datasets/{NAME}": Handler.info,
    rf"GET /api/datasets/{NAME}/revision/(.+)": Handler.info,
    rf"GET /api/datasets/{NAME}/tree/([^/]+)(?:/(.+))?": Handler.folder,
    rf"(?:GET|HEAD) /datasets/{NAME}/resolve/([^/]+)/(.+)": Handler.resolve,
    rf"(?:GET|HEAD) /{NAME}/resolve/([^/]+)/(.+)": Handler.resolve,
}
