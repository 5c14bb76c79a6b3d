//go:build tools

// Package tools imports what `go test -c sigs.k8s.io/cri-tools/cmd/critest` compiles, so that go.sum has its hashes.
package tools

import (
	_ "github.com/onsi/ginkgo/v2"
	_ "github.com/onsi/gomega"
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
