package main

// demoCommand are shows that prove a claim on the user's own machine.
type demoCommand struct {
	Truth demoTruthCommand `cmd:"" help:"Plays a job of known bytes and memory and compares: truth, this agent, /proc/PID/io, psutil. Exit status 1 on any byte of disk data."`
	Actor demoActorCommand `cmd:"" hidden:"" help:"One process of a demo's job."`
}
