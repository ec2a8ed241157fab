//! What QEMU knows of a running machine, for who counts.

use crate::supervisor::{limits::QMP_LIMIT, refusal::qmp_refusal};
use tokio::sync::oneshot;

use crate::supervisor::Supervisor;
use crate::{
    control::types::{DiskStatistics, Refusal, Statistics, TapOf},
    machine::{
        device,
        facets::{DISKS, NICS, nic_key},
    },
    value::Label,
};

impl Supervisor {
    pub(crate) fn statistics(&mut self, reply: oneshot::Sender<Result<Statistics, Refusal>>) {
        let Some(qemu) = &self.qemu else {
            let _ = reply.send(Err(Refusal::NotNow("starting")));
            return;
        };
        let tap = |nic: &str| {
            let tap = self.running.get(&nic_key(nic, "tap"))?.to_owned();
            Some(TapOf { nic: nic.to_owned(), tap })
        };
        let taps = self.running.names(NICS).into_iter().filter_map(tap).collect();
        let disks: Vec<Label> =
            self.running.names(DISKS).into_iter().filter_map(|name| name.parse().ok()).collect();
        let client = qemu.client.clone();
        self.tasks.spawn(async move {
            let asked = tokio::try_join!(client.blocks(QMP_LIMIT), client.vcpu_threads(QMP_LIMIT));
            let told = asked.map(|(blocks, vcpu_threads)| Statistics {
                disks: disks.iter().filter_map(|disk| of(disk, &blocks)).collect(),
                taps,
                vcpu_threads,
            });
            let _ = reply.send(told.map_err(|error| qmp_refusal("read QEMU's statistics", &error)));
        });
    }
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
