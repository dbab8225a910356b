package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// The player is this binary again: the process whose tree the agent watches. It lives through all blocks and takes orders on
// standard input, one JSON text each, and answers each.
const (
	playerCommand = "player"
	helloOrder    = "hello" // to the agent at Socket, which then watches
	logOrder      = "log"   // which ends the window
)

type order struct {
	// Do is an order above or a workload's name.
	Do      string
	Seconds float64 `json:",omitempty"`
	Socket  string  `json:",omitempty"`
}

type answer struct {
	Operations, Seconds float64
	Error               string `json:",omitempty"`
}

// rate is in operations a second.
func (a answer) rate() float64 { return a.Operations / a.Seconds }

// playerPlaces are where the workloads find their things.
type playerPlaces struct {
	RAM, Disk, Python, Trainer string
}

type player struct {
	playerPlaces
	trainer *playing
}

func play(arguments []string) (err error) {
	p := player{}
	if len(arguments) != 1 {
		return errors.New("the player takes its places")
	}
	if err := json.Unmarshal([]byte(arguments[0]), &p.playerPlaces); err != nil {
		return fmt.Errorf("read the player's places: %w", err)
	}
	defer func() {
		if p.trainer != nil {
			err = errors.Join(err, p.trainer.stop())
		}
	}()
	orders, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := orders.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read an order: %w", err)
		}
		a, err := p.obey(o)
		if err != nil {
			a.Error = err.Error()
		}
		if err := answers.Encode(a); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
}

func (p *player) obey(o order) (answer, error) {
	switch o.Do {
	case helloOrder:
		return answer{}, newCaller(o.Socket).call("DescribeRun", `{"name":"bpfcost"}`)
	case logOrder:
		return answer{}, newCaller(o.Socket).call("LogSystemMetrics", `{"context":"BENCHMARK"}`)
	}
	for _, w := range workloads() {
		if w.name == o.Do {
			return w.play(p, seconds(o.Seconds))
		}
	}
	return answer{}, fmt.Errorf("no workload %q", o.Do)
}

// playing is a child that takes orders.
type playing struct {
	command *exec.Cmd
	orders  io.WriteCloser
	answers *json.Decoder
}

func startPlayer(places playerPlaces) (*playing, error) {
	text, err := json.Marshal(places)
	if err != nil {
		return nil, err
	}
	command := exec.Command("/proc/self/exe", playerCommand, string(text))
	command.Stderr = os.Stderr
	return startWorker(command)
}

func startWorker(command *exec.Cmd) (*playing, error) {
	orders, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	answers, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	command.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", command.Path, err)
	}
	return &playing{command, orders, json.NewDecoder(bufio.NewReader(answers))}, nil
}

// ask gives an order and waits for the answer.
func (p *playing) ask(o order) (a answer, err error) {
	if err := json.NewEncoder(p.orders).Encode(o); err != nil {
		return a, fmt.Errorf("order %s: %w", o.Do, err)
	}
	if err := p.answers.Decode(&a); err != nil {
		return a, fmt.Errorf("answer to %s: %w", o.Do, err)
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

func (p *playing) stop() error {
	return errors.Join(p.orders.Close(), p.command.Wait())
}

// caller calls the agent for this process.
type caller struct{ client http.Client }

func newCaller(socket string) *caller {
	return &caller{http.Client{Timeout: patience, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "unix", socket)
		},
	}}}
}

func (c *caller) call(method, message string) error {
	defer c.client.CloseIdleConnections()
	return c.callAgain(method, message)
}

// callAgain keeps the connection for the next call.
func (c *caller) callAgain(method, message string) error {
	answer, err := c.client.Post("http://agent/prov4ml.v1.AgentService/"+method, "application/json", strings.NewReader(message))
	if err != nil {
		return fmt.Errorf("call %s: %w", method, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", method, err)
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", method, answer.Status, text)
	}
	return nil
}
