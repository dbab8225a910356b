// Command prov4ml-agent attributes disk and memory activity to training processes and emits each of their log calls as
// OpenTelemetry spans and metrics. This package only maps flags onto the configuration of the others and wires them.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/alecthomas/kong"
)

// version is set by the linker.
var version = "dev"

// exitAgentFailure is the exit status of a failure of the agent's own, as in env(1) and timeout(1): 126 and 127 are the
// command's, as a shell has them.
const exitAgentFailure = 125

// exitStatus ends the program with a status that is not the agent's own failure.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

type commands struct {
	Serve   serveCommand   `cmd:"" help:"The daemon: takes log calls from every process on the node (DaemonSet, systemd)."`
	Run     runCommand     `cmd:"" help:"One job, no set-up: runs CMD, follows it, prints a summary, writes records and OTLP files."`
	Check   checkCommand   `cmd:"" help:"What works on this node, a line per capability and probe: ok, or why not and what to do."`
	Report  reportCommand  `cmd:"" help:"The summary of an earlier run again."`
	Cleanup cleanupCommand `cmd:"" help:"Remove what ended agents have left pinned in the kernel to go on counting."`
	Demo    demoCommand    `cmd:"" help:"Proves a claim on this machine."`
	Version versionCommand `cmd:"" help:"Print the version."`
	Launch  launchCommand  `cmd:"" hidden:"" help:"Wait for the go-ahead on file descriptor 3, then become CMD."`
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is the whole program but for os.Exit.
func run(args []string, stdout, stderr io.Writer) int {
	var cli commands
	helped := false
	parser, err := kong.New(&cli,
		kong.Name("prov4ml-agent"),
		kong.Description("What each training step did to memory, disk and GPU: measured outside the training, by process tree, "+
			"emitted as OpenTelemetry spans and metrics."),
		kong.UsageOnError(),
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { helped = true }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
	)
	if err != nil {
		fmt.Fprintln(stderr, "prov4ml-agent:", err)
		return exitAgentFailure
	}
	context, err := parser.Parse(args)
	if helped {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "prov4ml-agent: %v; see prov4ml-agent --help\n", err)
		return exitAgentFailure
	}
	err = context.Run(streams{stdout, stderr})
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	default:
		fmt.Fprintln(stderr, "prov4ml-agent:", err)
		return exitAgentFailure
	}
}

// streams are where commands print.
type streams struct{ out, err io.Writer }

type versionCommand struct{}

// Run prints the version.
func (versionCommand) Run(s streams) error {
	_, err := fmt.Fprintln(s.out, "prov4ml-agent", version)
	return err
}
