// Command bpfcost measures what the agent's kernel programs cost the work that they watch, and what the agent itself costs, and
// writes the tables into docs/benchmark.md. It needs root, fio, losetup and mkfs.ext4.
//
// Each workload is measured without an agent, under one, and under one while the kernel keeps BPF statistics, several times in
// random order. The wall clock compares the first two; it cannot resolve 1 %, so costs come from the third. The statistics are
// switched on by BPF_ENABLE_STATS, which ends with its file descriptor, and never by sysctl. They read a clock twice for each
// event; an empty program on the same event shows how much of a figure that is.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// config is what the user may choose.
type config struct {
	agent, document, python, trainer, disk string
	// only names the workloads to measure; empty = all. goals says whether to measure the agent too.
	only   []string
	goals  bool
	rounds int
	// block is how long a workload is timed, window how long a part of the agent's own costs.
	block, window time.Duration
	seed          uint64
}

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case playerCommand:
			exit(play(os.Args[2:]))
		case loggerCommand:
			exit(logRegularly(os.Args[2:]))
		}
	}
	var c config
	flag.StringVar(&c.agent, "agent", "bin/prov4ml-agent", "the agent's binary")
	flag.StringVar(&c.document, "document", "docs/benchmark.md", "Markdown file whose section is replaced; empty = none")
	flag.StringVar(&c.python, "python", os.Getenv("PYTHON"), "Python that imports torch; empty = no training")
	flag.StringVar(&c.trainer, "trainer", "bench/bpfcost/train.py", "the training")
	flag.StringVar(&c.disk, "disk", "/var/tmp", "directory on a real disk")
	flag.IntVar(&c.rounds, "rounds", 5, "how often each is measured")
	flag.DurationVar(&c.block, "block", 1500*time.Millisecond, "how long a workload is timed")
	flag.DurationVar(&c.window, "window", 10*time.Second, "how long the agent's CPU time is measured, idle and loaded, three times each")
	flag.BoolVar(&c.goals, "goals", true, "measure the agent's own costs too")
	flag.Uint64Var(&c.seed, "seed", 1, "of the random order")
	only := flag.String("workloads", "", "measure these alone, by comma; the document is then left alone")
	flag.Parse()
	if *only != "" {
		c.only, c.document = strings.Split(*only, ","), ""
	}
	if !c.goals {
		c.document = ""
	}
	exit(run(c))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bpfcost:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(c config) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("the programs and the loop device need root: sudo make bench-bpf")
	}
	// A key typed to end it ends it after the block that is under way, so that nothing stays mounted; all that it starts is in process
	// groups of their own, and does not see the key.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if c.agent, err = filepath.Abs(c.agent); err != nil {
		return fmt.Errorf("find the agent: %w", err)
	}
	work, err := os.MkdirTemp("", "bpfcost-")
	if err != nil {
		return fmt.Errorf("make a work directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()

	before := load()
	pairs, err := measurePairs(ctx, c, work)
	if err != nil {
		return err
	}
	text := machine(before) + "\n" + pairs.text()
	if c.python == "" {
		text += "\nNo training was measured: no Python was named.\n"
	}
	if c.goals {
		goals, err := measureGoals(ctx, c, work)
		if err != nil {
			return err
		}
		text += "\n" + goals.text()
	}
	fmt.Print(text)
	if c.document == "" {
		return nil
	}
	return replaceSection(c.document, text)
}

// measurePairs measures every workload with and without the agent.
func measurePairs(ctx context.Context, c config, work string) (_ *pairs, err error) {
	chosen := workloads()
	if c.only != nil {
		chosen = slices.DeleteFunc(chosen, func(w workload) bool { return !slices.Contains(c.only, w.name) })
	}
	if c.python == "" {
		chosen = slices.DeleteFunc(chosen, func(w workload) bool { return w.name == trainingName })
	}
	ram, err := mountRAM(ctx, work)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ram.unmount()) }()
	disk, err := os.MkdirTemp(c.disk, "bpfcost-")
	if err != nil {
		return nil, fmt.Errorf("make a directory on the disk: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(disk)) }()
	p, err := startPlayer(playerPlaces{RAM: ram.directory, Disk: disk, Python: c.python, Trainer: c.trainer})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()

	// What is made once (files to read, torch) is no part of a block.
	for _, w := range chosen {
		if _, err := p.ask(order{Do: w.name, Seconds: 0.2}); err != nil {
			return nil, fmt.Errorf("prepare %s: %w", w.name, err)
		}
	}
	random := rand.New(rand.NewPCG(c.seed, 0))
	result := &pairs{rounds: c.rounds, block: c.block, measured: make([]measured, len(chosen))}
	for i, w := range chosen {
		result.measured[i].workload = w
	}
	for round := range c.rounds {
		for _, i := range random.Perm(len(chosen)) {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			m := &result.measured[i]
			if err := m.measure(c, work, p, random.IntN(2) == 0); err != nil {
				return nil, fmt.Errorf("%s: %w", m.workload.name, err)
			}
		}
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, c.rounds)
	}
	return result, nil
}

// measure adds a round: a pair, and a block with statistics under the same agent as the pair's.
func (m *measured) measure(c config, work string, p *playing, offFirst bool) (err error) {
	off := func() error {
		done, err := p.ask(order{Do: m.workload.name, Seconds: c.block.Seconds()})
		m.off = append(m.off, done.rate())
		return err
	}
	if offFirst {
		if err := off(); err != nil {
			return err
		}
	}
	if err := m.measureWatched(c, work, p); err != nil {
		return err
	}
	if offFirst {
		return nil
	}
	return off()
}

func (m *measured) measureWatched(c config, work string, p *playing) (err error) {
	a, err := startAgent(c.agent, work)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.stop()) }()
	if _, err := p.ask(order{Do: helloOrder, Socket: a.socket}); err != nil {
		return err
	}
	on, err := p.ask(order{Do: m.workload.name, Seconds: c.block.Seconds()})
	if err != nil {
		return err
	}
	counted, done, err := a.withStatistics(c.block, func(seconds float64) (answer, error) {
		return p.ask(order{Do: m.workload.name, Seconds: seconds})
	})
	if err != nil {
		return err
	}
	if _, err := p.ask(order{Do: logOrder, Socket: a.socket}); err != nil {
		return err
	}
	m.on = append(m.on, on.rate())
	m.counted = append(m.counted, counted)
	m.countedRate = append(m.countedRate, done.rate())
	// Figures of work that was not watched are worth nothing.
	return a.proveWatched((on.Operations + done.Operations) * m.workload.bytes)
}
