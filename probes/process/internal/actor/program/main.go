//go:build linux

// Command program is an actor and nothing else: where processors are emulated it starts in a fraction of the time that the test
// binary takes.
package main

import (
	"fmt"
	"os"

	"github.com/prov4ml/agent/probes/process/internal/actor"
)

func main() {
	actor.Main()
	fmt.Fprintln(os.Stderr, "no steps in", actor.Variable)
	os.Exit(2)
}
