//go:build tools

// The client of a container runtime, as administrators have it on nodes. This file only names its program, so that
// go.mod and go.sum pin everything it is built from.
package crictl

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
)
