//! `bench pull`: being written.

pub(crate) fn run() -> anyhow::Result<()> {
    anyhow::bail!("not there yet")
}
