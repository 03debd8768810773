// ACTIONS_RUNNER_HOOK_JOB_STARTED: makes the job that this runner has taken a job of jobfence.
//
// JavaScript, because the runner executes that with its own node. It would look up the shell of a .sh
// file in the path, which a job may change.
"use strict";

const { spawnSync } = require("child_process");

const PROGRAM = "/usr/bin/jobfence";
const ARGUMENTS = ["hook", "github", "started"];
// The runner itself waits for a hook for ever.
const SECONDS = 60;

const { error, status } = spawnSync(PROGRAM, ARGUMENTS, {
  stdio: "inherit",
  timeout: SECONDS * 1000,
  killSignal: "SIGKILL",
});
if (error) {
  const cause = error.code === "ETIMEDOUT" ? `no answer in ${SECONDS} s` : error.code;
  console.log(`::error title=jobfence%3A the job is not fenced::could not run ${PROGRAM}: ${cause}`);
}
// Fails the job unless the program has said that it is fenced: a signal is no status.
process.exitCode = status === 0 && !error ? 0 : 1;
