//go:build tools

// The newest client of GoBGP, beside Debian's. This file only names it, so that go.mod and go.sum pin
// everything it is built from.
package gobgp

import _ "github.com/osrg/gobgp/v4/cmd/gobgp"
