package process

import (
	"fmt"

	"github.com/prov4ml/agent/probes"
)

// Config says how to measure. The zero value is the default.
type Config struct {
	// ProcRoot is where procfs is mounted; empty = /proc.
	ProcRoot string
	// NoEBPF, when not empty, measures by procfs alone; the text is what users read as the reason of what is missing.
	NoEBPF string
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
	k, status, err := openKernel(refuse)
	if err != nil {
		files.Missing = missing(status, err)
		return &fallback{Probe: NewProcfs(files), kernel: status}, nil
	}
	if k.reasons[groupDisk] == "" && k.reasons[groupTask] == "" && k.reasons[groupMemory] == "" {
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
