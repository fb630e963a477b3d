//! Passwords from files with one each, handed to the plan when they have changed.

use super::super::apply::Kernel;
use super::super::password_files::{self, FilePasswords};
use super::Driver;
use crate::model::World;

impl<K: Kernel> Driver<K> {
    /// Reads the files again.
    pub(super) async fn look_at_passwords(&mut self) {
        let names = password_files::names(&self.plan.own().routing.peers);
        let read = self.passwords.look(&names);
        self.take_passwords(read).await;
    }

    /// Reads the files that a World names and the one before did not, so that its peers need not wait for the next look.
    pub(super) async fn look_at_passwords_of(&mut self, world: &World) {
        let own = world.cluster.nodes.get(&world.host.node_name);
        let named = own.map(|node| password_files::names(&node.routing().peers)).unwrap_or_default();
        if let Some(names) = password_files::names_meanwhile(&self.plan.own().routing.peers, named) {
            let read = self.passwords.look_at_named(&names);
            self.take_passwords(read).await;
        }
    }

    async fn take_passwords(&mut self, read: Option<FilePasswords>) {
        if let Some(read) = read {
            let changed = self.plan.set_file_passwords(read);
            self.carry_out(&changed).await;
        }
    }
}
