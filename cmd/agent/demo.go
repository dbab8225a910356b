package main

// demoCommand are shows that prove a claim on the user's own machine.
type demoCommand struct {
	Truth demoTruthCommand `cmd:"" help:"Plays a job of known bytes and memory and compares: truth, this agent, /proc/PID/io, psutil. Exit status 1 on any byte of disk data."`
	Flops demoFlopsCommand `cmd:"" help:"Counts three models beside fvcore, torch's FlopCounterMode and the truth by formula, then trains with and without the calls. Needs a Python with torch. Exit status 1 on any difference."`
	Actor demoActorCommand `cmd:"" hidden:"" help:"One process of a demo's job."`
}
