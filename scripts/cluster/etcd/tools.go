//go:build tools

// The store behind the lab's API server. This file only names it, so that go.mod and go.sum pin
// everything it is built from.
package etcd

import _ "go.etcd.io/etcd/server/v3"
