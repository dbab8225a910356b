package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/otel"
	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/probes/process"
)

// checkCommand says what works on this node. It attaches every probe for a moment and changes nothing.
type checkCommand struct {
	JSON   bool   `help:"One JSON array instead of lines."`
	PinDir string `help:"Where serve pins its counting, in a bpf file system." default:"/sys/fs/bpf/prov4ml" env:"PROV4ML_PIN_DIR"`
}

// finding is one line of check.
type finding struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Source string `json:"source,omitempty"`
	// Detail says what was found when OK, and why not otherwise.
	Detail string `json:"detail,omitempty"`
	Cure   string `json:"cure,omitempty"`
}

// Run prints the findings.
func (c checkCommand) Run(s streams) error {
	findings := []finding{kernel(), btf(), capabilities()}
	findings = append(findings, pins(c.PinDir)...)
	probe, err := process.Open(process.Config{})
	if err != nil {
		findings = append(findings, finding{Name: "process probes", Detail: err.Error()})
	} else {
		for _, status := range probe.Status() {
			findings = append(findings, fromStatus(status))
		}
		if err := probe.Close(); err != nil {
			return fmt.Errorf("detach the probes: %w", err)
		}
	}
	findings = append(findings, gpu())
	findings = append(findings, endpoints(os.Getenv)...)
	if c.JSON {
		encoder := json.NewEncoder(s.out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(findings)
	}
	return printFindings(s.out, findings)
}

func printFindings(out io.Writer, findings []finding) error {
	for _, f := range findings {
		mark := "ok "
		if !f.OK {
			mark = "no "
		}
		line := mark + " " + f.Name
		if f.Source != "" {
			line += " [" + f.Source + "]"
		}
		if f.Detail != "" {
			line += ": " + f.Detail
		}
		if f.Cure != "" {
			line += "; " + f.Cure
		}
		if _, err := fmt.Fprintln(out, line); err != nil {
			return err
		}
	}
	return nil
}

func fromStatus(s probes.Status) finding {
	return finding{Name: s.Name, OK: s.OK, Source: strings.ToLower(s.Source.String()), Detail: s.Reason, Cure: s.Cure}
}

func kernel() finding {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return finding{Name: "kernel", Detail: err.Error()}
	}
	release := unix.ByteSliceToString(name.Release[:])
	var major, minor int
	_, _ = fmt.Sscanf(release, "%d.%d", &major, &minor)
	f := finding{Name: "kernel", OK: major > 5 || major == 5 && minor >= 10, Detail: release}
	if !f.OK {
		f.Detail += " is older than 5.10"
		f.Cure = "values come from procfs; a newer kernel gives eBPF"
	}
	return f
}

func btf() finding {
	const path = "/sys/kernel/btf/vmlinux"
	if _, err := os.Stat(path); err != nil {
		return finding{
			Name: "kernel BTF", Detail: err.Error(),
			Cure: "values come from procfs; a kernel built with CONFIG_DEBUG_INFO_BTF gives eBPF",
		}
	}
	return finding{Name: "kernel BTF", OK: true, Detail: path}
}

// neededCapabilities are what eBPF and foreign /proc entries ask for since 5.8, where CAP_SYS_ADMIN was split.
var neededCapabilities = []struct {
	bit  uint
	name string
}{
	{unix.CAP_BPF, "CAP_BPF"},
	{unix.CAP_PERFMON, "CAP_PERFMON"},
	{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE"},
}

func capabilities() finding {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return finding{Name: "capabilities", Detail: err.Error()}
	}
	effective := uint64(data[1].Effective)<<32 | uint64(data[0].Effective)
	var have, lack []string
	for _, c := range neededCapabilities {
		if effective&(1<<c.bit) != 0 {
			have = append(have, c.name)
		} else {
			lack = append(lack, c.name)
		}
	}
	if len(lack) == 0 {
		return finding{Name: "capabilities", OK: true, Detail: strings.Join(have, ", ")}
	}
	self, err := os.Executable()
	if err != nil {
		self = "prov4ml-agent"
	}
	return finding{
		Name: "capabilities", Detail: "without " + strings.Join(lack, ", "),
		Cure: "run it with sudo (training then runs as you), or once: sudo setcap cap_bpf,cap_perfmon,cap_sys_ptrace+ep " + self,
	}
}

// pins says whether serve can count on while it restarts, and what is pinned.
func pins(dir string) []finding {
	if err := process.CanPin(dir); err != nil {
		return []finding{{
			Name: "bpffs", Detail: err.Error(), Cure: "serve then does not count while it restarts: mount -t bpf bpf " + filepath.Dir(dir),
		}}
	}
	sets, err := process.PinnedSets(dir)
	all := []finding{{Name: "bpffs", OK: err == nil, Detail: fmt.Sprintf("pinned sets in %s: %d", dir, len(sets))}}
	if err != nil {
		all[0].Detail += ": " + err.Error()
	}
	for _, set := range sets {
		f := finding{Name: "pinned set", OK: !set.Dead(), Detail: describe(set)}
		if !f.OK {
			f.Cure = "its agent is gone; the next serve of that state directory takes it over, or prov4ml-agent cleanup removes it"
		}
		all = append(all, f)
	}
	return all
}

// endpoints says whether the receivers that the environment names take connections: one finding for each address.
func endpoints(getenv func(string) string) []finding {
	const name = "OTLP endpoint"
	receiver, err := otel.ReadEnvironment(getenv)
	if err != nil {
		return []finding{{Name: name, Detail: err.Error(), Cure: "mend the variable; run and serve refuse to start with it"}}
	}
	var findings []finding
	var asked []string
	for _, e := range []otel.Endpoint{receiver.Traces, receiver.Metrics} {
		if e.Enabled() && !slices.Contains(asked, e.String()) {
			asked = append(asked, e.String())
			findings = append(findings, endpoint(name, e.String()))
		}
	}
	if findings == nil {
		return []finding{{Name: name, OK: true, Detail: "none set (OTEL_EXPORTER_OTLP_ENDPOINT): files only"}}
	}
	return findings
}

func endpoint(name, address string) finding {
	network, host := "tcp", address
	if path, isPath := strings.CutPrefix(address, "unix:"); isPath {
		network, host = "unix", strings.TrimPrefix(path, "//")
	} else {
		if parsed, err := url.Parse(address); err == nil && parsed.Host != "" {
			host = parsed.Host
		}
		if _, _, err := net.SplitHostPort(host); err != nil {
			host = net.JoinHostPort(host, "4317")
		}
	}
	conn, err := net.DialTimeout(network, host, 2*time.Second)
	if err != nil {
		return finding{
			Name: name, Detail: address + ": " + err.Error(),
			Cure: "start the receiver or mend OTEL_EXPORTER_OTLP_ENDPOINT; records wait in the store meanwhile",
		}
	}
	_ = conn.Close()
	return finding{Name: name, OK: true, Detail: address}
}

// gpu says what the agent measures of GPUs.
func gpu() finding {
	return finding{Name: "GPU", Detail: "this version measures no GPU; GPU values are absent"}
}
