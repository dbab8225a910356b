package server

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
)

// Whatever becomes of a large message, its slot is free afterwards.
func TestLargeMessagesGiveTheirSlotsBack(t *testing.T) {
	r := start(t, &fakeTracker{})
	large := `{"context":"a",` + strings.Repeat(" ", 2*largeBytes)
	for range 2 * maxLargeReads {
		for _, contentType := range []string{"application/json", "application/json; charset=utf-8"} {
			if a := r.do(r.httpClient(false), logSystemMetrics, contentType, []byte(large+`"step":1}`)); a.status != http.StatusOK {
				t.Fatalf("%s: %d %s", contentType, a.status, a.raw)
			}
			if a := r.do(r.httpClient(false), logSystemMetrics, contentType, []byte(large+`"step":"x"}`)); a.status != http.StatusBadRequest {
				t.Fatalf("%s: %d %s", contentType, a.status, a.raw)
			}
		}
	}
	data, err := protojson.Marshal(streamedCall(1, 1))
	if err != nil {
		t.Fatal(err)
	}
	data = append(data, bytes.Repeat([]byte{' '}, 2*largeBytes)...)
	var stream [][]byte
	for range 2 * maxLargeReads {
		stream = append(stream, envelope(0, data))
	}
	// The last one is torn.
	for _, last := range [][]byte{nil, envelope(0, data)[:largeBytes]} {
		message, end := rawStream(t, r, "application/connect+json", append(stream, last)...)
		var answer prov4mlv1.LogStreamResponse
		if err := protojson.Unmarshal(message, &answer); last == nil && (err != nil || answer.GetAccepted() != 2*maxLargeReads) {
			t.Errorf("%s %s: %v", message, end, err)
		}
	}
	eventually(t, "the slots are free", func() bool { return len(r.largeReads) == 0 && len(r.largeDecodes) == 0 })
}

// While all slots are taken, small calls are served.
func TestSmallCallsNeedNoSlot(t *testing.T) {
	r := start(t, &fakeTracker{})
	for range maxLargeReads {
		r.largeReads <- struct{}{}
	}
	if a := r.post("LogSystemMetrics", `{}`); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.raw)
	}
	done := make(chan answer)
	go func() { done <- r.post("LogSystemMetrics", strings.Repeat(" ", 2*largeBytes)+`{}`) }()
	// The large one goes on once there is room.
	<-r.largeReads
	if a := <-done; a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.raw)
	}
}
