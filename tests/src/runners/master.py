# A Buildbot master: a builder for each file in the folder `builders`, which holds its command line, a
# word a line. A file of that name in the folder `changes` starts it, as a change of a branch; what came of
# a build is written to the folder `results`.

import json
import os

from buildbot.plugins import schedulers, steps, util, worker
from buildbot.util import service
from twisted.internet import defer, task

FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PORT = "tcp:9989:interface=127.0.0.1"


class Folders(service.BuildbotService):
    name = "folders"

    @defer.inlineCallbacks
    def startService(self):
        yield super().startService()
        yield self.master.mq.startConsuming(self.finished, ("builds", None, "finished"))
        task.LoopingCall(self.look).start(0.1)

    @defer.inlineCallbacks
    def look(self):
        changes = os.path.join(FOLDER, "changes")
        for name in os.listdir(changes):
            os.remove(os.path.join(changes, name))
            yield self.master.data.updates.addChange(
                author="somebody", files=["file"], comments="", branch=name, repository="",
                project="", revision="1", when_timestamp=0,
            )

    @defer.inlineCallbacks
    def finished(self, _key, build):
        log = ""
        for step in (yield self.master.data.get(("builds", build["buildid"], "steps"))):
            for part in (yield self.master.data.get(("steps", step["stepid"], "logs"))):
                raw = yield self.master.data.get(("logs", part["logid"], "raw"))
                log += raw["raw"]
        builder = yield self.master.data.get(("builders", build["builderid"]))
        path = os.path.join(FOLDER, "results", builder["name"])
        with open(path + ".new", "w") as file:
            json.dump({"results": build["results"], "log": log}, file)
        os.rename(path + ".new", path)


def builder(name):
    with open(os.path.join(FOLDER, "builders", name)) as file:
        command = file.read().splitlines()
    factory = util.BuildFactory([steps.ShellCommand(command=command, usePTY=False)])
    return util.BuilderConfig(name=name, workernames=["worker"], factory=factory)


def scheduler(name):
    return schedulers.SingleBranchScheduler(
        name=name,
        change_filter=util.ChangeFilter(branch=name),
        treeStableTimer=None,
        builderNames=[name],
    )


names = sorted(os.listdir(os.path.join(FOLDER, "builders")))
c = BuildmasterConfig = {
    "workers": [worker.Worker("worker", "password", max_builds=4)],
    "protocols": {"pb": {"port": PORT}},
    "schedulers": [scheduler(name) for name in names],
    "builders": [builder(name) for name in names],
    "services": [Folders()],
    "db": {"db_url": "sqlite:///state.sqlite"},
    "buildbotNetUsageData": None,
}
