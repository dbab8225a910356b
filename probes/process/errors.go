package process

import "errors"

var (
	// ErrGone says that the process has exited, or that its pid belongs to another one now.
	ErrGone = errors.New("process is gone")
	// ErrUnsupported says that this node cannot measure it that way.
	ErrUnsupported = errors.New("not supported on this node")
)
