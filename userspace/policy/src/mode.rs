//! What a fence does with what no rule allows, and with a job that tried it.

/// What the fence does with an attempt that no rule allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It is refused and recorded.
    #[default]
    Enforce,
    /// It is let through and recorded.
    Audit,
}

impl Mode {
    /// The one that lets less through.
    pub(crate) fn stricter(self, other: Self) -> Self {
        match (self, other) {
            (Self::Audit, Self::Audit) => Self::Audit,
            _ => Self::Enforce,
        }
    }
}

/// What a violation does to the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnViolation {
    /// The job fails at its end.
    #[default]
    Fail,
    /// The job is ended at once.
    Kill,
    /// The job goes on and does not fail for it.
    Warn,
}

impl OnViolation {
    /// The one that does more to the job.
    pub(crate) fn stricter(self, other: Self) -> Self {
        match (self, other) {
            (Self::Kill, _) | (_, Self::Kill) => Self::Kill,
            (Self::Fail, _) | (_, Self::Fail) => Self::Fail,
            (Self::Warn, Self::Warn) => Self::Warn,
        }
    }
}
