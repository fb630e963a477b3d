//! Passwords from files with one each, handed to the plan when they have changed.

use std::collections::BTreeSet;

use compact_str::CompactString;

use super::super::apply::Kernel;
use super::super::password_files;
use super::Driver;
use crate::model::World;

impl<K: Kernel> Driver<K> {
    /// Reads the files again.
    pub(super) async fn look_at_passwords(&mut self) {
        let names = password_files::names(&self.plan.own().routing.peers);
        self.read_passwords(&names).await;
    }

    /// Reads the files that a World names and the one before did not, so that its peers need not wait for the next look.
    pub(super) async fn look_at_passwords_of(&mut self, world: &World) {
        let own = world.cluster.nodes.get(&world.host.node_name);
        let names = own.map(|node| password_files::names(&node.routing().peers)).unwrap_or_default();
        if names != password_files::names(&self.plan.own().routing.peers) {
            self.read_passwords(&names).await;
        }
    }

    async fn read_passwords(&mut self, names: &BTreeSet<CompactString>) {
        if let Some(read) = self.passwords.look(names) {
            let changed = self.plan.set_file_passwords(read);
            self.carry_out(&changed).await;
        }
    }
}
