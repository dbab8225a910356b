package server

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
	"github.com/prov4ml/agent/api/prov4ml/v1/prov4mlv1connect"
)

// The test binary is also the client that gets killed, or whose parent is logged for.
const (
	clientModeEnv   = "PROV4ML_TEST_CLIENT"
	clientSocketEnv = "PROV4ML_TEST_SOCKET"
)

func TestMain(m *testing.M) {
	var err error
	switch mode := os.Getenv(clientModeEnv); mode {
	case "":
		os.Exit(m.Run())
	case "connect":
		err = streamConnect(os.Getenv(clientSocketEnv))
	case "grpc":
		err = streamGRPC(os.Getenv(clientSocketEnv))
	case "parent":
		err = logForParent(os.Getenv(clientSocketEnv))
	default:
		err = fmt.Errorf("no mode %q", mode)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

const killedCalls = 100

// envelope puts the Connect protocol's prefix before a message.
func envelope(flags byte, data []byte) []byte {
	out := append([]byte{flags}, binary.BigEndian.AppendUint32(nil, uint32(len(data)))...)
	return append(out, data...)
}

// streamedCall is one asynchronous call.
func streamedCall(step int64, seq uint64) *prov4mlv1.LogStreamRequest {
	synchronous := false
	phase := "training"
	return &prov4mlv1.LogStreamRequest{Call: &prov4mlv1.LogStreamRequest_LogSystemMetrics{
		LogSystemMetrics: &prov4mlv1.LogSystemMetricsRequest{Context: &phase, Step: &step, Seq: seq, Synchronous: &synchronous},
	}}
}

// streamConnect writes calls as a standard-library client does, says so, and waits to be killed.
func streamConnect(path string) error {
	c, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(c, "POST /prov4ml.v1.AgentService/LogStream HTTP/1.1\r\nHost: agent\r\n"+
		"Content-Type: application/connect+json\r\nTransfer-Encoding: chunked\r\n\r\n"); err != nil {
		return err
	}
	for i := range killedCalls {
		data, err := protojson.Marshal(streamedCall(int64(i), uint64(i+1)))
		if err != nil {
			return err
		}
		data = envelope(0, data)
		if _, err := fmt.Fprintf(c, "%x\r\n%s\r\n", len(data), data); err != nil {
			return err
		}
	}
	fmt.Println("written")
	select {}
}

// streamGRPC does the same over gRPC. The transport writes behind Send's back, so it waits for that.
func streamGRPC(path string) error {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	client := prov4mlv1connect.NewAgentServiceClient(&http.Client{Transport: &http.Transport{
		Protocols: &protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}, "http://agent", connect.WithGRPC())
	stream := client.LogStream(context.Background())
	for i := range killedCalls {
		if err := stream.Send(streamedCall(int64(i), uint64(i+1))); err != nil {
			return err
		}
	}
	time.Sleep(50 * time.Millisecond)
	fmt.Println("written")
	select {}
}

// logForParent is the curl line.
func logForParent(path string) error {
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	res, err := client.Post("http://agent/prov4ml.v1.AgentService/LogSystemMetrics", "application/json",
		bodyOf(`{"context":"TRAINING","step":"3","subject":"PARENT"}`))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		data, _ := io.ReadAll(res.Body)
		return fmt.Errorf("%s: %s", res.Status, data)
	}
	return nil
}
