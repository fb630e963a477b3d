//go:build tools

// The newest client and daemon of GoBGP, beside Debian's. This file only names them, so that go.mod and go.sum pin
// everything they are built from.
package gobgp

import (
	_ "github.com/osrg/gobgp/v4/cmd/gobgp"
	_ "github.com/osrg/gobgp/v4/cmd/gobgpd"
)
