//! Every attack of the table as a test of its own.

use jobfence_tests::attack::{Outcome, attacks};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

fn main() {
    let trial = |attack: jobfence_tests::attack::Attack| {
        Trial::ignorable_test(attack.name, move || match attack.run() {
            Ok(Outcome::Stopped { .. }) => Ok(Completion::Completed),
            Ok(Outcome::LeftOut(why)) => Ok(Completion::ignored_with(format!("left out: {why}"))),
            Err(error) => Err(Failed::from(format!("{error:#}"))),
        })
    };
    let trials = attacks().into_iter().map(|(_, attack)| trial(attack));
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
