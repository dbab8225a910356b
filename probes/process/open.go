package process

import (
	"github.com/prov4ml/agent/probes"
)

// Config says how to measure. The zero value is the default.
type Config struct {
	// ProcRoot is where procfs is mounted; empty = /proc.
	ProcRoot string
	// NoEBPF measures by procfs alone; it says why, since users read it as the reason of what is missing.
	NoEBPF string
}

// Open starts measuring: by eBPF, or by procfs where trees cannot be followed by eBPF, which Status explains. It does not fail for
// want of rights or of kernel features.
func Open(config Config) (Probe, error) {
	if config.NoEBPF != "" {
		return NewProcfs(ProcfsConfig{Root: config.ProcRoot, Missing: config.NoEBPF}), nil
	}
	k, status, err := openKernel()
	if err == nil {
		return k, nil
	}
	return &fallback{Probe: NewProcfs(ProcfsConfig{Root: config.ProcRoot, Missing: missing(status, err)}), kernel: status}, nil
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
	return err.Error()
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
