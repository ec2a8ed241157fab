//! Methods that change a running machine: devices, block nodes, network back ends, links.

use std::{os::fd::OwnedFd, time::Duration};

use serde_json::{Value, json};

use crate::{Client, Error};

impl Client {
    /// Returns the IDs of removable devices: the QOM children of `/machine/peripheral`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn devices(&self, limit: Duration) -> Result<Vec<String>, Error> {
        let path = json!({ "path": "/machine/peripheral" });
        let value = self.raw("qom-list", path, limit).await?;
        let child = |one: &Value| {
            one["type"]
                .as_str()?
                .starts_with("child<")
                .then(|| one["name"].as_str())?
                .map(str::to_owned)
        };
        Ok(value.as_array().into_iter().flatten().filter_map(child).collect())
    }

    /// Returns the ID of the bus of a device, such as a PCIe root port.
    ///
    /// # Errors
    /// See [`Error`]; the device does not exist.
    pub async fn bus_of(&self, device: &str, limit: Duration) -> Result<String, Error> {
        let of =
            json!({ "path": format!("/machine/peripheral/{device}"), "property": "parent_bus" });
        let value = self.raw("qom-get", of, limit).await?;
        let path = value.as_str().unwrap_or_default();
        Ok(path.rsplit('/').next().unwrap_or_default().to_owned())
    }

    /// Passes a descriptor under a name for later commands (`getfd`). An earlier one with this name
    /// is closed.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn pass_fd(&self, name: &str, fd: OwnedFd, limit: Duration) -> Result<(), Error> {
        self.raw_with("getfd", json!({ "fdname": name }), fd, limit).await.map(drop)
    }

    /// Closes a passed descriptor that no command has used.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn close_fd(&self, name: &str, limit: Duration) -> Result<(), Error> {
        self.raw("closefd", json!({ "fdname": name }), limit).await.map(drop)
    }

    /// Passes a descriptor that QEMU opens as `/dev/fdset/SET`, with a text that identifies it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn add_fd(
        &self,
        set: i32,
        opaque: &str,
        fd: OwnedFd,
        limit: Duration,
    ) -> Result<(), Error> {
        let to = json!({ "fdset-id": set, "opaque": opaque });
        self.raw_with("add-fd", to, fd, limit).await.map(drop)
    }

    /// Removes a descriptor set; its descriptors are closed when QEMU no longer uses them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_fds(&self, set: i32, limit: Duration) -> Result<(), Error> {
        self.raw("remove-fd", json!({ "fdset-id": set }), limit).await.map(drop)
    }

    /// Returns all descriptor sets with their texts.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn fd_sets(&self, limit: Duration) -> Result<Vec<(i32, String)>, Error> {
        let sets = self.raw("query-fdsets", json!({}), limit).await?;
        let read = |set: &Value| {
            let opaque = set["fds"][0]["opaque"].as_str().unwrap_or_default();
            Some((i32::try_from(set["fdset-id"].as_i64()?).ok()?, opaque.to_owned()))
        };
        Ok(sets.as_array().into_iter().flatten().filter_map(read).collect())
    }

    /// The ids of the objects that were created by the user: QOM's children of `/objects`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn objects(&self, limit: Duration) -> Result<Vec<String>, Error> {
        let value = self.raw("qom-list", json!({ "path": "/objects" }), limit).await?;
        let all = value.as_array().into_iter().flatten();
        Ok(all.filter_map(|one| Some(one["name"].as_str()?.to_owned())).collect())
    }

    /// Creates an object, in the words of `-object`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn add_object(&self, object: Value, limit: Duration) -> Result<(), Error> {
        self.raw("object-add", object, limit).await.map(drop)
    }

    /// Removes an object that nothing uses.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_object(&self, id: &str, limit: Duration) -> Result<(), Error> {
        self.raw("object-del", json!({ "id": id }), limit).await.map(drop)
    }

    /// Sets the limits of a throttle group, in the words of QEMU's `ThrottleLimits`. Other limits
    /// stay.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_throttle_limits(
        &self,
        group: &str,
        limits: Value,
        limit: Duration,
    ) -> Result<(), Error> {
        let path = format!("/objects/{group}");
        let to = json!({ "path": path, "property": "limits", "value": limits });
        self.raw("qom-set", to, limit).await.map(drop)
    }

    /// The path of the device that uses a block node; `None` if there is none.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn device_of_node(
        &self,
        node: &str,
        limit: Duration,
    ) -> Result<Option<String>, Error> {
        let blocks = self.raw("query-block", json!({}), limit).await?;
        let mut blocks = blocks.as_array().into_iter().flatten();
        let block = blocks.find(|one| one["inserted"]["node-name"] == node);
        Ok(block.and_then(|block| block["qdev"].as_str()).map(str::to_owned))
    }

    /// Limits a device's access to its block node (`block_set_io_throttle`), with all limits in the
    /// words of QEMU's `ThrottleLimits`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn throttle_device(
        &self,
        device: &str,
        limits: &Value,
        limit: Duration,
    ) -> Result<(), Error> {
        let mut arguments = json!({ "id": device });
        for (kind, names) in [
            ("iops-total", ["iops", "iops_max", "iops_max_length"]),
            ("iops-read", ["iops_rd", "iops_rd_max", "iops_rd_max_length"]),
            ("iops-write", ["iops_wr", "iops_wr_max", "iops_wr_max_length"]),
            ("bps-total", ["bps", "bps_max", "bps_max_length"]),
            ("bps-read", ["bps_rd", "bps_rd_max", "bps_rd_max_length"]),
            ("bps-write", ["bps_wr", "bps_wr_max", "bps_wr_max_length"]),
        ] {
            let [rate, burst, length] = names;
            let of = |suffix: &str| limits[format!("{kind}{suffix}")].as_u64().unwrap_or(0);
            arguments[rate] = of("").into();
            arguments[burst] = of("-max").into();
            arguments[length] = of("-max-length").max(1).into();
        }
        self.raw("block_set_io_throttle", arguments, limit).await.map(drop)
    }

    /// Opens a block node, in the words of `-blockdev`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn add_node(&self, node: Value, limit: Duration) -> Result<(), Error> {
        self.raw("blockdev-add", node, limit).await.map(drop)
    }

    /// Closes a block node that no device uses.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_node(&self, node: &str, limit: Duration) -> Result<(), Error> {
        self.raw("blockdev-del", json!({ "node-name": node }), limit).await.map(drop)
    }

    /// Returns the names of all block nodes.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn node_names(&self, limit: Duration) -> Result<Vec<String>, Error> {
        let nodes = self.raw("query-named-block-nodes", json!({ "flat": true }), limit).await?;
        let name = |one: &Value| one["node-name"].as_str().map(str::to_owned);
        Ok(nodes.as_array().into_iter().flatten().filter_map(name).collect())
    }

    /// Puts an overlay on top of each node, all at one instant: pairs of a node and its overlay.
    /// The nodes are read-only afterward.
    ///
    /// # Errors
    /// See [`Error`]. If refused, no node has changed.
    pub async fn put_overlays(
        &self,
        pairs: &[(String, String)],
        limit: Duration,
    ) -> Result<(), Error> {
        let action = |(node, overlay): &(String, String)| {
            let data = json!({ "node": node, "overlay": overlay });
            json!({ "type": "blockdev-snapshot", "data": data })
        };
        let actions: Vec<Value> = pairs.iter().map(action).collect();
        self.raw("transaction", json!({ "actions": actions }), limit).await.map(drop)
    }

    /// Returns the virtual size of a node in bytes.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn node_size(&self, node: &str, limit: Duration) -> Result<Option<u64>, Error> {
        let nodes = self.raw("query-named-block-nodes", json!({ "flat": true }), limit).await?;
        let found = nodes.as_array().into_iter().flatten().find(|one| one["node-name"] == node);
        Ok(found.and_then(|one| one["image"]["virtual-size"].as_u64()))
    }

    /// Grows a node's image and notifies the guest.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn resize_node(&self, node: &str, bytes: u64, limit: Duration) -> Result<(), Error> {
        let to = json!({ "node-name": node, "size": bytes });
        self.raw("block_resize", to, limit).await.map(drop)
    }

    /// Creates a network back end, with the options of `-netdev`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn add_net(&self, net: Value, limit: Duration) -> Result<(), Error> {
        self.raw("netdev_add", net, limit).await.map(drop)
    }

    /// Removes a network back end and closes its tap.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_net(&self, id: &str, limit: Duration) -> Result<(), Error> {
        self.raw("netdev_del", json!({ "id": id }), limit).await.map(drop)
    }

    /// Hotplugs a device, with the options of `-device`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn add_device(&self, device: Value, limit: Duration) -> Result<(), Error> {
        self.raw("device_add", device, limit).await.map(drop)
    }

    /// Requests the removal of a device from the guest; the event `DEVICE_DELETED` confirms it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_device(&self, id: &str, limit: Duration) -> Result<(), Error> {
        self.raw("device_del", json!({ "id": id }), limit).await.map(drop)
    }

    /// Presses keys together and releases them after `hold`.
    ///
    /// # Errors
    /// See [`Error`]; a key does not exist.
    pub async fn press(
        &self,
        keys: &[String],
        hold: Duration,
        limit: Duration,
    ) -> Result<(), Error> {
        let keys: Vec<Value> =
            keys.iter().map(|key| json!({ "type": "qcode", "data": key })).collect();
        let hold = u64::try_from(hold.as_millis()).unwrap_or(u64::MAX);
        self.raw("send-key", json!({ "keys": keys, "hold-time": hold }), limit).await.map(drop)
    }

    /// Writes a screenshot as PNG to a write-only descriptor. `set` is the number of an unused
    /// descriptor set.
    ///
    /// # Errors
    /// See [`Error`]; there is no screen, or QEMU was built without PNG.
    pub async fn picture(&self, set: u32, to: OwnedFd, limit: Duration) -> Result<(), Error> {
        self.raw_with("add-fd", json!({ "fdset-id": set }), to, limit).await?;
        let dump = json!({ "filename": format!("/dev/fdset/{set}"), "format": "png" });
        let taken = self.raw("screendump", dump, limit).await;
        self.raw("remove-fd", json!({ "fdset-id": set }), limit).await?;
        taken.map(drop)
    }

    /// Sets the link state of a NIC.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_link(&self, nic: &str, up: bool, limit: Duration) -> Result<(), Error> {
        self.raw("set_link", json!({ "name": nic, "up": up }), limit).await.map(drop)
    }
}
