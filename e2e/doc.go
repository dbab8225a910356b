// Package e2e proves the built agent as a user runs it: real processes, real files, real sockets, real eBPF.
package e2e
