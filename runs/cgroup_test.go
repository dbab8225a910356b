package runs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each fixture of testdata/cgroup is the /proc/PID/cgroup of a process in the place that its name says.
func TestContainerAndPod(t *testing.T) {
	const (
		id  = "4f2a1b0c9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d4e3f2a"
		pod = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
	)
	want := map[string][2]string{
		"v1-containerd-cgroupfs":    {id, pod},
		"v1-docker-cgroupfs":        {id, ""},
		"v1-guaranteed-cgroupfs":    {id, pod},
		"v1-host":                   {"", ""},
		"v2-containerd-systemd":     {id, pod},
		"v2-containerd-colon":       {id, pod},
		"v2-crio-systemd":           {id, pod},
		"v2-crio-conmon":            {"", pod},
		"v2-docker-systemd":         {id, ""},
		"v2-guaranteed-systemd":     {id, pod},
		"v2-host-login":             {"", ""},
		"v2-host-root":              {"", ""},
		"v2-podman-systemd":         {id, ""},
		"v2-static-pod":             {id, "0a1b2c3d4e5f60718293a4b5c6d7e8f9"},
		"v2-slurm":                  {"", ""},
		"v2-docker-in-pod":          {"ffff1b0c9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d4e3f2a", pod},
		"hybrid-containerd-systemd": {id, pod},
		"namespaced":                {"", ""},
	}
	files, err := filepath.Glob("testdata/cgroup/*")
	if err != nil || len(files) != len(want) {
		t.Errorf("%d fixtures for %d rows: %v", len(files), len(want), err)
	}
	for name, row := range want {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("testdata/cgroup", name))
			if err != nil {
				t.Fatal(err)
			}
			container, uid := parseCgroup(string(text))
			if container != row[0] || uid != row[1] {
				t.Errorf("container %q, pod %q, want %q and %q", container, uid, row[0], row[1])
			}
		})
	}
}

func FuzzParseCgroup(f *testing.F) {
	files, err := filepath.Glob("testdata/cgroup/*")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Fuzz(func(t *testing.T, text string) {
		container, pod := parseCgroup(text)
		if container != "" && (len(container) != 64 || !strings.Contains(text, container)) {
			t.Errorf("container %q is not in the text", container)
		}
		if pod != "" && len(pod) != 32 && len(pod) != 36 {
			t.Errorf("pod %q", pod)
		}
	})
}
