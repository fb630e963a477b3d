//go:build tools

// The program that lints and renders the chart (charts/sluice).
package tools

import _ "helm.sh/helm/v4/cmd/helm"
