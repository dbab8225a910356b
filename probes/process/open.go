package process

import (
	"fmt"
	"time"

	"github.com/prov4ml/agent/probes"
)

// Config says how to measure. The zero value is the default.
type Config struct {
	// ProcRoot is where procfs is mounted; empty = /proc.
	ProcRoot string
	// NoEBPF, when not empty, measures by procfs alone; the text is what users read as the reason of what is missing.
	NoEBPF string

	// StateDir is the state directory whose agent counts on while it restarts; empty = counting ends with the probe. One agent at a
	// time may open it.
	StateDir string
	// PinDir is where the pinned sets lie, in a bpf file system; empty = DefaultPinDir.
	PinDir string
	// NoPin pins nothing, and removes what an earlier agent of StateDir has pinned.
	NoPin bool

	// heartbeatLimit is the package's constant, but for tests; 0 = that.
	heartbeatLimit time.Duration
}

// pinSet is the place of the set; nil with the reason when there can be none, nil, nil when none is wanted.
func (c *Config) pinSet() (*pinSet, error) {
	if c.StateDir == "" {
		return nil, nil
	}
	set, err := namePinSet(c.PinDir, c.StateDir, c.heartbeatLimit)
	if err != nil && c.NoPin {
		err = errNoPin
	}
	return set, err
}

// Open starts measuring: by eBPF, and by procfs what eBPF does not give on this node, which may be all. Status says what and why. It
// does not fail for want of rights or of kernel features.
func Open(config Config) (Probe, error) {
	return open(config, nil)
}

func open(config Config, refuse func(program string) error) (Probe, error) {
	files := ProcfsConfig{Root: config.ProcRoot, Missing: config.NoEBPF}
	if config.NoEBPF != "" {
		return NewProcfs(files), nil
	}
	k, status, err := openKernel(refuse, config)
	if err != nil {
		files.Missing = missing(status, err)
		return &fallback{Probe: NewProcfs(files), kernel: status}, nil
	}
	if k.complete() {
		return k, nil // procfs has nothing to add
	}
	files.Missing = missing(status, nil)
	return &composed{kernel: k, files: NewProcfs(files), ids: map[TreeID]TreeID{}}, nil
}

// missing is the reason and the cure in one sentence.
func missing(status []probes.Status, err error) string {
	for i := range status {
		if line := &status[i]; !line.OK {
			if line.Cure != "" {
				return line.Name + ": " + line.Reason + ": " + line.Cure
			}
			return line.Name + ": " + line.Reason
		}
	}
	return fmt.Sprint(err)
}

// fallback is procfs with the lines that say why not eBPF.
type fallback struct {
	Probe
	kernel []probes.Status
}

// Status implements Probe.
func (f *fallback) Status() []probes.Status {
	return append(append([]probes.Status(nil), f.kernel...), f.Probe.Status()...)
}
