package runs

import (
	"os"
	"regexp"
	"strconv"
	"strings"
)

// A container's id and a pod's uid stand in the path of a cgroup. The forms, with their drivers:
//
//	/kubepods/burstable/pod<uid>/<id>                                            cgroupfs
//	/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope   systemd; uid with _ for -
//	.../crio-<id>.scope, .../docker-<id>.scope, .../libpod-<id>.scope            CRI-O, Docker, Podman under systemd
//	/docker/<id>, /actions_job/<id>                                              Docker with cgroupfs
//	/system.slice/containerd.service/kubepods-...:cri-containerd:<id>            containerd with a systemd path given to cgroupfs
//
// An id is 64 hex digits, a pod's uid 8-4-4-4-12 or, for a static pod, 32 hex digits. Whatever else there is gives nothing: no pod
// is better than a wrong one.
var (
	containerPattern = regexp.MustCompile(`^(?:.*[-:])?([0-9a-f]{64})(?:\.scope)?$`)
	podPattern       = regexp.MustCompile(`^(?:kubepods-(?:[a-z]+-)?)?pod([0-9a-f]{32}|` +
		`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{8}_[0-9a-f]{4}_[0-9a-f]{4}_[0-9a-f]{4}_[0-9a-f]{12})(?:\.slice)?$`)
)

// containerOf returns the container id and the pod uid of a process; empty where there is none.
func containerOf(procRoot string, pid int) (container, pod string) {
	text, err := os.ReadFile(procRoot + "/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return "", ""
	}
	return parseCgroup(string(text))
}

// parseCgroup reads the lines "hierarchy:controllers:path" of cgroups(7). v2 is hierarchy 0; v1 has a line for each hierarchy;
// hybrid has both, and the container's path may stand in either only. All lines of one process name the same container.
func parseCgroup(text string) (container, pod string) {
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		lineContainer, linePod := parsePath(parts[2])
		if container == "" {
			container = lineContainer
		}
		if pod == "" {
			pod = linePod
		}
	}
	return container, pod
}

// parsePath takes the innermost container, and the pod outside it: with Docker in a pod the process is in Docker's container.
func parsePath(path string) (container, pod string) {
	for part := range strings.SplitSeq(path, "/") {
		if match := containerPattern.FindStringSubmatch(part); match != nil {
			container = match[1]
		}
		// cgroup of a systemd path given to cgroupfs: "kubepods-burstable-pod<uid>.slice:cri-containerd:<id>".
		slice, _, _ := strings.Cut(part, ":")
		if match := podPattern.FindStringSubmatch(slice); match != nil {
			pod = strings.ReplaceAll(match[1], "_", "-")
		}
	}
	return container, pod
}
