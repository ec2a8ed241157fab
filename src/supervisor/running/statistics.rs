//! Counters of a running machine.

use crate::{
    control::types::{DiskStatistics, NicTap, Refusal, Statistics},
    machine::device,
    supervisor::{limits::QMP_LIMIT, refusal::qmp_refusal},
    value::Label,
};

/// Reads the counters of `disks`, and adds `taps`.
///
/// # Errors
/// QEMU does not answer.
pub(crate) async fn statistics(
    client: qmp::Client,
    disks: Vec<Label>,
    taps: Vec<NicTap>,
) -> Result<Statistics, Refusal> {
    let asked = tokio::try_join!(client.blocks(QMP_LIMIT), client.vcpu_threads(QMP_LIMIT));
    let (blocks, vcpu_threads) =
        asked.map_err(|error| qmp_refusal("read QEMU's statistics", &error))?;
    let disks = disks.iter().filter_map(|disk| of(disk, &blocks)).collect();
    Ok(Statistics { disks, taps, vcpu_threads })
}

fn of(disk: &Label, blocks: &[qmp::Block]) -> Option<DiskStatistics> {
    let node = device::node(disk);
    let block = blocks.iter().find(|block| block.node == node)?;
    let ([read_bytes, reads, read_nanoseconds], [written_bytes, writes, write_nanoseconds]) =
        (block.read, block.written);
    let [flushes, flush_nanoseconds] = block.flushed;
    Some(DiskStatistics {
        name: disk.to_string(),
        size_bytes: block.size,
        allocated_bytes: block.allocated,
        read_bytes,
        written_bytes,
        reads,
        writes,
        flushes,
        read_nanoseconds,
        write_nanoseconds,
        flush_nanoseconds,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::supervisor::tests::{Answer, FakeQemu, Host};

    #[tokio::test]
    async fn refused_counters_are_a_refusal() {
        let host = Host::new();
        let fake = FakeQemu::new(&host).await;
        fake.peer.script.on("query-named-block-nodes", Answer::Refuse("no"));
        fake.peer.script.on("query-blockstats", Answer::Refuse("no"));
        fake.peer.script.on("query-cpus-fast", Answer::Return(json!([])));
        let asked = statistics(fake.qemu.client(), vec![], vec![]).await;
        assert!(matches!(asked, Err(Refusal::Failed(_, why)) if why.contains("statistics")));
    }

    #[test]
    fn disk_that_qemu_does_not_have_is_left_out() {
        assert!(of(&"root".parse().unwrap(), &[]).is_none());
    }
}
