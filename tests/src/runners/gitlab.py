"""The part of GitLab that a runner talks to: jobs, traces, states, and repositories over HTTP."""

import http.server
import json
import os
import sys

port, folder = int(sys.argv[1]), sys.argv[2]


class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *arguments):
        super().__init__(*arguments, directory=os.path.join(folder, "repositories"))

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, status, value=None):
        text = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self):
        self.body()
        assert self.path == "/api/v4/jobs/request", self.path
        queue = os.path.join(folder, "queue")
        for name in sorted(os.listdir(queue)):
            taken = os.path.join(folder, "taken", name)
            try:
                os.rename(os.path.join(queue, name), taken)
            except FileNotFoundError:
                continue
            with open(taken) as file:
                return self.answer(201, json.load(file))
        self.answer(204)

    def do_PATCH(self):
        _, _, _, _, job, what = self.path.split("/")
        assert what == "trace", self.path
        text = self.body()
        with open(os.path.join(folder, "trace-" + job), "ab") as file:
            file.write(text)
        self.answer(202)

    def do_PUT(self):
        _, _, _, _, job = self.path.split("/")
        path = os.path.join(folder, "state-" + job)
        with open(path + ".new", "w") as file:
            file.write(json.loads(self.body())["state"])
        os.rename(path + ".new", path)
        self.answer(200)


server = http.server.ThreadingHTTPServer(("0.0.0.0", port), Handler)
print("ready", flush=True)
server.serve_forever()
