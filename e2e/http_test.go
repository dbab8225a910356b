package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// unixClient speaks HTTP over the agent's socket.
func unixClient(socket string) *http.Client {
	return &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", socket)
			},
		},
	}
}

const service = "http://agent/prov4ml.v1.AgentService/"

// logUntil logs steps 0, 1, 2 ... as fast as the agent answers and reports each acknowledged one; it goes on while the agent is
// away.
func logUntil(socket string, stop <-chan struct{}, acknowledged chan<- int64) {
	client := unixClient(socket)
	for step := int64(0); ; step++ {
		select {
		case <-stop:
			return
		default:
		}
		body := fmt.Sprintf(`{"context":"training","step":%d}`, step)
		answer, err := client.Post(service+"LogSystemMetrics", "application/json", strings.NewReader(body))
		if err != nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		_, err = io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		if err == nil && answer.StatusCode == http.StatusOK {
			acknowledged <- step
		}
	}
}

func TestCurlLogsForItsShell(t *testing.T) {
	dir, data := dataDir(t), dataDir(t)
	s := startServe(t, dir)
	const curl = `curl -sS --fail-with-body --unix-socket "$1" -H 'Content-Type: application/json' ` +
		`-d '{"context":"TRAINING","step":"%d","subject":"PARENT"}' ` + service + `LogSystemMetrics >&2
`
	shell := exec.Command("sh", "-c", fmt.Sprintf(curl, 1)+
		`dd if=/dev/zero of="$2/file" bs=1M count=6 conv=fsync status=none
`+fmt.Sprintf(curl, 2), "sh", s.socket, data)
	shell.Env = trainingEnvironment()
	j := startJob(t, shell)
	if code := j.exit(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	traces := filepath.Join(s.out, "traces.jsonl")
	await(t, "the shell's end", func() bool { return len(named(readSpansSoFar(t, traces), "training_run_end")) == 1 })
	s.stop(t)
	two := atStep(t, readSpans(t, traces), 2)
	if got := two.integer(t, "disk.write_bytes"); got != 6*mib {
		t.Errorf("the shell's child wrote %d, want %d", got, 6*mib)
	}
	if got := two.Attributes["prov4ml.context"]; got != "training" {
		t.Errorf("context %v, want training", got)
	}
	if got := two.Resource["process.pid"]; got != int64(shell.Process.Pid) {
		t.Errorf("process.pid %v, want the shell's %d", got, shell.Process.Pid)
	}
}

func TestBadInputIsRefusedAndDisturbsNobody(t *testing.T) {
	dir := dataDir(t)
	s := startServe(t, dir)
	client := unixClient(s.socket)
	good := func() {
		t.Helper()
		answer, err := client.Post(service+"LogSystemMetrics", "application/json", strings.NewReader(`{"context":"training","step":1}`))
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			text, _ := io.ReadAll(answer.Body)
			t.Fatalf("a good call got %s: %s", answer.Status, text)
		}
	}
	good()
	for _, row := range []struct{ name, body, says string }{
		{"context is no string", `{"context":5}`, "context"},
		{"step is no integer", `{"step":"three"}`, "step"},
		{"step is a fraction", `{"step":1.5}`, "step"},
		{"step beyond 64 bits", `{"step":"99999999999999999999"}`, "step"},
		{"context over 1 KiB", `{"context":"` + strings.Repeat("c", 1025) + `"}`, "context"},
		{"unknown field", `{"stepp":1}`, "stepp"},
		{"no JSON", `{"context":`, ""},
		{"over 1 MiB", `{"context":"` + strings.Repeat("c", 1<<20) + `"}`, "1 MiB"},
		{"empty", ``, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			answer, err := client.Post(service+"LogSystemMetrics", "application/json", strings.NewReader(row.body))
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			text, _ := io.ReadAll(answer.Body)
			if answer.StatusCode < 400 || answer.StatusCode >= 500 {
				t.Errorf("status %s: %s", answer.Status, text)
			}
			var refusal struct{ Code, Message string }
			if err := json.Unmarshal(text, &refusal); err != nil || refusal.Message == "" {
				t.Errorf("no sentence in the answer: %s", text)
			}
			if !strings.Contains(refusal.Message, row.says) {
				t.Errorf("%q does not name %q", refusal.Message, row.says)
			}
			good()
		})
	}
	t.Run("no HTTP", func(t *testing.T) {
		conn, err := net.Dial("unix", s.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(bytes.Repeat([]byte{0xff, 0x00, 0x16}, 100)); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		text, _ := io.ReadAll(conn)
		if !bytes.Contains(text, []byte("400")) {
			t.Errorf("answer %q, want a 400", text)
		}
		good()
	})
	answer, err := client.Post(service+"GetStatus", "application/json", strings.NewReader(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var status struct {
		Counters map[string]string `json:"counters"`
		Probes   []struct {
			Name string `json:"name"`
			OK   bool   `json:"ok"`
		} `json:"probes"`
	}
	if err := json.NewDecoder(answer.Body).Decode(&status); err != nil {
		t.Fatal(err)
	}
	if len(status.Counters) == 0 || len(status.Probes) == 0 {
		t.Errorf("status %+v: want counters of refusals and probes", status)
	}
	t.Logf("counters %v", status.Counters)
	s.stop(t)
}

func TestCallerOfAnotherPidNamespaceIsTold(t *testing.T) {
	// The agent in a pid namespace of its own sees the pid of a caller outside as 0.
	dir := dataDir(t)
	socket := filepath.Join(dir, "agent.sock")
	cmd := exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", binary, "serve", "--socket", socket,
		"--state", filepath.Join(dir, "state"))
	cmd.Env = trainingEnvironment()
	startJob(t, cmd)
	client := unixClient(socket)
	var text []byte
	var status int
	await(t, "an answer", func() bool {
		answer, err := client.Post(service+"LogSystemMetrics", "application/json", strings.NewReader(`{}`))
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		text, _ = io.ReadAll(answer.Body)
		status = answer.StatusCode
		return true
	})
	if status < 400 || !bytes.Contains(text, []byte("hostPID")) {
		t.Errorf("status %d: %s; want a refusal that names the cure, hostPID", status, text)
	}
}
