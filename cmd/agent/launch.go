package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
)

const (
	// A shell's answers to a command that cannot be executed and one that does not exist.
	exitNotExecutable = 126
	exitNotFound      = 127

	goAheadDescriptor = 3
)

// launchCommand becomes CMD in the same process once the agent, which follows that process by then, says so. Hence not one
// of CMD's reads is missed, and CMD's own lookup and permissions decide whether it starts.
type launchCommand struct {
	Ordinary bool     `help:"Undo the agent's own scheduling policy."`
	Command  []string `arg:"" passthrough:""`
}

// Run returns only if CMD cannot be executed.
func (c launchCommand) Run(s streams) error {
	goAhead := os.NewFile(goAheadDescriptor, "go-ahead")
	if n, err := goAhead.Read(make([]byte, 1)); n == 0 {
		return fmt.Errorf("the agent ended before the command started: %w", err)
	}
	_ = goAhead.Close()
	command := trimSeparator(c.Command)
	path, err := exec.LookPath(command[0])
	if errors.Is(err, exec.ErrDot) { // a relative PATH entry: a shell runs it
		err = nil
	}
	if c.Ordinary {
		beOrdinary()
	}
	if err == nil {
		environment := ownEnvironment()
		if err = syscall.Exec(path, command, environment); errors.Is(err, syscall.ENOEXEC) {
			// A script without a first line that says what runs it: the shell does, as for execvp(3).
			err = syscall.Exec("/bin/sh", append([]string{"/bin/sh", path}, command[1:]...), environment)
		}
	}
	fmt.Fprintf(s.err, "prov4ml-agent: %s: %v\n", command[0], err)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return exitStatus(exitNotFound)
	}
	return exitStatus(exitNotExecutable)
}

// trimSeparator drops the -- between the agent's own arguments and the command.
func trimSeparator(command []string) []string {
	if len(command) > 0 && command[0] == "--" {
		return command[1:]
	}
	return command
}

// child is a started CMD that waits for its go-ahead.
type child struct {
	cmd     *exec.Cmd
	goAhead *os.File
}

// launch starts CMD's process with CMD still to come: release lets it go. background says that the agent has changed its own
// scheduling policy.
func launch(command, environment []string, credential *syscall.Credential, background bool) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the agent's own binary: %w", err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make the go-ahead pipe: %w", err)
	}
	defer read.Close()
	arguments := []string{"launch", fmt.Sprintf("--ordinary=%t", background), "--"}
	cmd := exec.Command(self, append(arguments, command...)...)
	cmd.Env = environment
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{read}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	if err := cmd.Start(); err != nil {
		_ = write.Close()
		return nil, fmt.Errorf("start the command: %w", err)
	}
	return &child{cmd: cmd, goAhead: write}, nil
}

// release lets the command start.
func (c *child) release() error {
	_, err := c.goAhead.Write([]byte{1})
	return errors.Join(err, c.goAhead.Close())
}

// kill ends a command that was not released.
func (c *child) kill() error {
	err := errors.Join(c.goAhead.Close(), c.cmd.Process.Kill())
	_, _ = c.wait()
	return err
}

// wait returns the command's exit status as a shell gives it: 128+n when signal n ended it.
func (c *child) wait() (int, error) {
	err := c.cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return 128 + int(status.Signal()), nil
		}
		return exit.ExitCode(), nil
	default:
		return 0, fmt.Errorf("wait for the command: %w", err)
	}
}
