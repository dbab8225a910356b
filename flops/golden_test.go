package flops

import "testing"

// Published models, built from their architecture alone: the integers are those of a trace of torchvision's and
// transformers' own models, forward and backward, batch 1 unless the row says otherwise.

// network collects the operators of a model whose parameters are all trained.
type network struct {
	operators []Operator
	// Whether the current activation needs a gradient: from the first trained layer on.
	grad bool
}

func (n *network) add(o Operator) {
	n.operators = append(n.operators, o)
	n.grad = true
}

// convolution adds a square one on size x size pixels and returns the size of its result.
func (n *network) convolution(batch, in, out, kernel, stride, padding, groups, size int64) int64 {
	result := (size+2*padding-kernel)/stride + 1
	n.add(Operator{
		Name:    "aten.convolution",
		Inputs:  []Tensor{tensor("input", n.grad, batch, in, size, size), tensor("weight", true, out, in/groups, kernel, kernel)},
		Outputs: []Tensor{tensor("", false, batch, out, result, result)},
		Scalars: map[string]int64{"transposed": 0, "groups": groups},
	})
	return result
}

// linear adds a layer on so many rows.
func (n *network) linear(rows, in, out int64) {
	n.add(Operator{
		Name:   "aten.addmm",
		Inputs: []Tensor{tensor("self", true, out), tensor("mat1", n.grad, rows, in), tensor("mat2", true, in, out)},
	})
}

// attention adds the two products of heads x length x length pairs.
func (n *network) attention(heads, length, width int64) {
	n.add(Operator{Name: "aten.bmm", Inputs: []Tensor{tensor("self", true, heads, length, width), tensor("mat2", true, heads, width, length)}})
	n.add(Operator{Name: "aten.bmm", Inputs: []Tensor{tensor("self", true, heads, length, length), tensor("mat2", true, heads, length, width)}})
}

func vgg(batch int64, stages ...[]int64) []Operator {
	n, size, in := &network{}, int64(224), int64(3)
	for _, stage := range stages {
		for _, out := range stage {
			size = n.convolution(batch, in, out, 3, 1, 1, 1, size)
			in = out
		}
		size /= 2
	}
	n.linear(batch, 512*7*7, 4096)
	n.linear(batch, 4096, 4096)
	n.linear(batch, 4096, 1000)
	return n.operators
}

// residual is a ResNet of basic or bottleneck blocks; groups and width as ResNeXt has them.
func residual(batch int64, bottleneck bool, groups, width int64, blocks ...int) []Operator {
	n := &network{}
	size := n.convolution(batch, 3, 64, 7, 2, 3, 1, 224)
	size = (size+2-3)/2 + 1
	in := int64(64)
	for stage, count := range blocks {
		planes := int64(64) << stage
		out, inner := planes, planes
		if bottleneck {
			out, inner = 4*planes, planes*width/64*groups
		}
		for block := range count {
			stride := int64(1)
			if stage > 0 && block == 0 {
				stride = 2
			}
			before := size
			if bottleneck {
				n.convolution(batch, in, inner, 1, 1, 0, 1, size)
				size = n.convolution(batch, inner, inner, 3, stride, 1, groups, size)
				n.convolution(batch, inner, out, 1, 1, 0, 1, size)
			} else {
				size = n.convolution(batch, in, out, 3, stride, 1, 1, size)
				n.convolution(batch, out, out, 3, 1, 1, 1, size)
			}
			if stride != 1 || in != out {
				n.convolution(batch, in, out, 1, stride, 0, 1, before)
			}
			in = out
		}
	}
	n.linear(batch, in, 1000)
	return n.operators
}

func visionTransformer() []Operator {
	n := &network{}
	n.convolution(1, 3, 768, 16, 16, 0, 1, 224)
	const tokens = 197
	for range 12 {
		n.linear(tokens, 768, 3*768)
		n.attention(12, tokens, 64)
		n.linear(tokens, 768, 768)
		n.linear(tokens, 768, 3072)
		n.linear(tokens, 3072, 768)
	}
	n.linear(1, 768, 1000)
	return n.operators
}

// llama is the 7B shape: embeddings are trained, so that every operand needs a gradient.
func llama(tokens, vocabulary int64) []Operator {
	n := &network{grad: true}
	for range 32 {
		for range 4 {
			n.linear(tokens, 4096, 4096)
		}
		n.attention(32, tokens, 128)
		n.linear(tokens, 4096, 11008)
		n.linear(tokens, 4096, 11008)
		n.linear(tokens, 11008, 4096)
	}
	n.linear(tokens, 4096, vocabulary)
	return n.operators
}

// encoder is GPT-2's or BERT's stack of 12 layers of width 768.
func encoder(tokens int64) *network {
	n := &network{grad: true}
	for range 12 {
		for range 4 {
			n.linear(tokens, 768, 768)
		}
		n.attention(12, tokens, 64)
		n.linear(tokens, 768, 3072)
		n.linear(tokens, 3072, 768)
	}
	return n
}

func gpt2() []Operator {
	n := encoder(1024)
	n.linear(1024, 768, 50257)
	return n.operators
}

func bert() []Operator {
	n := encoder(128)
	n.linear(1, 768, 768)
	return n.operators
}

// recurrent is an embedding of width 64, two bidirectional layers of 128 units on 50 steps of batch 16, and a head of
// 10 classes.
func recurrent(name string, gates int64) []Operator {
	const batch, steps, width, hidden = 16, 50, 64, 128
	o := Operator{
		Name:    name,
		Scalars: map[string]int64{"num_layers": 2, "bidirectional": 1, "batch_first": 1},
		Inputs:  []Tensor{tensor("input", true, batch, steps, width), tensor("hx", false, 4, batch, hidden)},
	}
	in := int64(width)
	for range 2 {
		for range 2 {
			o.Inputs = append(o.Inputs,
				tensor("params", true, gates*hidden, in), tensor("params", true, gates*hidden, hidden),
				tensor("params", true, gates*hidden), tensor("params", true, gates*hidden))
		}
		in = 2 * hidden
	}
	n := &network{}
	n.add(o)
	n.linear(batch, 2*hidden, 10)
	return n.operators
}

func encoderLayer512() []Operator {
	const rows, batch, heads, length, width = 128, 2, 8, 64, 64
	n := &network{}
	n.linear(rows, 512, 3*512)
	n.attention(batch*heads, length, width)
	n.linear(rows, 512, 512)
	n.linear(rows, 512, 2048)
	n.linear(rows, 2048, 512)
	return n.operators
}

func convolutionPair() []Operator {
	n := &network{}
	n.convolution(4, 8, 16, 3, 2, 1, 4, 33)
	n.add(Operator{
		Name:    "aten.convolution",
		Inputs:  []Tensor{tensor("input", true, 4, 16, 17, 17), tensor("weight", true, 16, 4, 4, 4)},
		Outputs: []Tensor{tensor("", false, 4, 8, 34, 34)},
		Scalars: map[string]int64{"transposed": 1},
	})
	return n.operators
}

// frozenTeacher is 4 linear layers of 32 on 4 rows: two frozen ones, a trained one, and a teacher under no_grad.
func frozenTeacher() []Operator {
	layer := func(x, w bool) Operator {
		return Operator{Name: "aten.addmm", Inputs: []Tensor{tensor("self", w, 32), tensor("mat1", x, 4, 32), tensor("mat2", w, 32, 32)}}
	}
	return []Operator{layer(false, false), layer(false, false), layer(false, true), layer(false, false)}
}

func TestGoldenModels(t *testing.T) {
	for _, c := range []struct {
		name              string
		operators         []Operator
		forward, backward uint64
	}{
		{"VGG11 224", vgg(1, []int64{64}, []int64{128}, []int64{256, 256}, []int64{512, 512}, []int64{512, 512}), 15_218_180_096, 30_262_951_936},
		{"VGG16 224", vgg(1, []int64{64, 64}, []int64{128, 128}, []int64{256, 256, 256}, []int64{512, 512, 512}, []int64{512, 512, 512}), 30_940_528_640, 61_707_649_024},
		{"ResNet-18 224", residual(1, false, 1, 64, 2, 2, 2, 2), 3_628_146_688, 7_020_265_472},
		{"ResNet-50 224", residual(1, true, 1, 64, 3, 4, 6, 3), 8_178_368_512, 16_120_709_120},
		{"ResNet-101 224", residual(1, true, 1, 64, 3, 4, 23, 3), 15_602_810_880, 30_969_593_856},
		{"ResNeXt-50 32x4d 224", residual(1, true, 32, 4, 3, 4, 6, 3), 8_460_959_744, 16_685_891_584},
		{"ResNet-50 224 batch 32", residual(32, true, 1, 64, 3, 4, 6, 3), 261_707_792_384, 515_862_691_840},
		{"ViT-B/16 224", visionTransformer(), 35_127_656_448, 70_024_101_888},
		{"Linear(100,10) batch 32", []Operator{{Name: "aten.addmm", Inputs: []Tensor{
			tensor("self", true, 10), tensor("mat1", false, 32, 100), tensor("mat2", true, 100, 10),
		}}}, 64_000, 64_000},
		{"LSTM", recurrent("aten.lstm", 4), 943_800_320, 1_879_212_032},
		{"GRU", recurrent("aten.gru", 3), 707_870_720, 1_409_449_984},
		{"RNN", recurrent("aten.rnn_tanh", 1), 236_011_520, 469_925_888},
		{"encoder layer d512 h8 ff2048, batch 2 length 64", encoderLayer512(), 822_083_584, 1_442_840_576},
		{"grouped convolution and transposed convolution", convolutionPair(), 3_033_344, 5_400_832},
		{"frozen layers and a teacher", frozenTeacher(), 32_768, 8_192},
		{"LLaMA-7B 128", llama(128, 32_000), 1_700_001_742_848, 3_400_003_485_696},
		{"Baichuan-7B 128", llama(128, 64_000), 1_733_556_174_848, 3_467_112_349_696},
		{"Qwen-7B 128", llama(128, 151_936), 1_825_763_753_984, 3_651_527_507_968},
		{"Chinese-LLaMA-7B 128", llama(128, 49_953), 1_718_826_827_776, 3_437_653_655_552},
		{"GPT-2 small 1024", gpt2(), 291_648_307_200, 583_296_614_400},
		{"BERT-base 128", bert(), 22_348_431_360, 44_696_862_720},
	} {
		t.Run(c.name, func(t *testing.T) {
			totals, err := Count(&List{Operators: c.operators, Training: true})
			if err != nil {
				t.Fatal(err)
			}
			if !totals.Complete() {
				t.Fatalf("unknown: %+v", totals.Coverage.Unknown)
			}
			if f, b := small(t, totals.Forward.FLOPs), small(t, totals.Backward.FLOPs); f != c.forward || b != c.backward {
				t.Errorf("forward %d, backward %d; want %d and %d", f, b, c.forward, c.backward)
			}
			if got := totals.MACs().Times(2); !got.Equal(totals.FLOPs()) {
				t.Errorf("2 x MACs is %v, FLOPs %v", got, totals.FLOPs())
			}
		})
	}
}

// A multiply-accumulate of the whole path is affine in the batch, not linear: a constant part runs once whatever the
// batch.
func TestCostIsAffineInTheBatch(t *testing.T) {
	cost := func(batch int64) uint64 {
		operators := residual(batch, false, 1, 64, 2, 2, 2, 2)
		// A relative position bias, as Swin V2 computes it per step and not per sample.
		operators = append(operators, Operator{Name: "aten.addmm", Inputs: []Tensor{
			tensor("self", true, 512), tensor("mat1", false, 225, 2), tensor("mat2", true, 2, 512),
		}})
		totals, err := Count(&List{Operators: operators, Training: true})
		if err != nil {
			t.Fatal(err)
		}
		return small(t, totals.FLOPs())
	}
	slope := cost(2) - cost(1)
	constant := cost(1) - slope
	if constant == 0 {
		t.Fatal("the constant part is missing")
	}
	for _, batch := range []int64{3, 7, 32} {
		if got, want := cost(batch), constant+slope*uint64(batch); got != want {
			t.Errorf("batch %d: %d, want %d", batch, got, want)
		}
	}
}
