// ACTIONS_RUNNER_HOOK_JOB_COMPLETED: tells what the job was refused, and fails it for that.
//
// JavaScript, because the runner executes that with its own node. It would look up the shell of a .sh
// file in the path, which a job may change.
"use strict";

const { spawnSync } = require("child_process");

const PROGRAM = "/usr/bin/jobfence";
const ARGUMENTS = ["hook", "github", "completed"];
// The runner itself waits for a hook for ever.
const SECONDS = 60;

const { error, status } = spawnSync(PROGRAM, ARGUMENTS, {
  stdio: "inherit",
  timeout: SECONDS * 1000,
  killSignal: "SIGKILL",
});
if (error) {
  const cause = error.code === "ETIMEDOUT" ? `no answer in ${SECONDS} s` : error.code;
  console.log(`::error title=jobfence%3A what the job did is not known::could not run ${PROGRAM}: ${cause}`);
}
// Fails the job unless the program has said that it kept to its policy: a signal is no status.
process.exitCode = status === 0 && !error ? 0 : 1;
