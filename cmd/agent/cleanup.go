package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/prov4ml/agent/probes/process"
)

// cleanupCommand removes what serve leaves in the kernel to go on counting for the next serve.
type cleanupCommand struct {
	All    bool   `help:"Those of agents that are alive too: they count on until they end, and the next one starts anew."`
	PinDir string `help:"Directory of the pinned sets, in a bpf file system." default:"/sys/fs/bpf/prov4ml" env:"PROV4ML_PIN_DIR"`
}

// Run prints a line for each set.
func (c cleanupCommand) Run(s streams) error {
	sets, err := process.PinnedSets(c.PinDir)
	errs := []error{err}
	removed := 0
	for _, set := range sets {
		if !c.All && !set.Dead() {
			fmt.Fprintln(s.out, "kept", describe(set)+": its agent is alive")
			continue
		}
		if err := set.Remove(); err != nil {
			errs = append(errs, fmt.Errorf("cleanup: %w", err))
			continue
		}
		removed++
		fmt.Fprintln(s.out, "removed", describe(set))
	}
	if removed == 0 && errors.Join(errs...) == nil {
		fmt.Fprintln(s.out, "nothing to remove in", c.PinDir)
	}
	return errors.Join(errs...)
}

// describe names a set as its user knows it.
func describe(set process.PinnedSet) string {
	of := set.StateDir
	if of == "" {
		of = "an unknown state directory"
	}
	return fmt.Sprintf("%s of %s, last heartbeat %v ago", set.Dir, of, set.Age.Round(time.Second))
}
