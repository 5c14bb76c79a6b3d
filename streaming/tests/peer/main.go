// Command peer is the other side of coracle-streaming's tests: Kubernetes' own clients (client-go) and streaming
// server (cri-streaming). The tests in ../peers.rs start it and speak with it over a local socket.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	"k8s.io/cri-streaming/pkg/streaming"
	serving "k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	exitcodes "k8s.io/utils/exec"
)

func main() {
	var err error
	switch os.Args[1] {
	case "exec":
		err = execute(os.Args[2], os.Args[3], os.Args[4] == "tty")
	case "forward":
		err = forward(os.Args[2], os.Args[3])
	case "serve":
		err = serve()
	}
	var exit utilexec.CodeExitError
	if errors.As(err, &exit) {
		os.Exit(exit.Code)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(125)
	}
}

type oneSize struct{ sizes chan remotecommand.TerminalSize }

func (o oneSize) Next() *remotecommand.TerminalSize {
	size, open := <-o.sizes
	if !open {
		return nil
	}
	return &size
}

// execute sends its input to the command at the address and prints what comes; it ends with the command's code.
func execute(transport, address string, tty bool) error {
	target, err := url.Parse(address)
	if err != nil {
		return err
	}
	config := &rest.Config{Host: target.Host}
	var executor remotecommand.Executor
	if transport == "spdy" {
		executor, err = remotecommand.NewSPDYExecutor(config, "POST", target)
	} else {
		executor, err = remotecommand.NewWebSocketExecutorForProtocols(config, "GET", address, transport)
	}
	if err != nil {
		return err
	}
	options := remotecommand.StreamOptions{Stdin: os.Stdin, Stdout: os.Stdout, Tty: tty}
	if tty {
		sizes := make(chan remotecommand.TerminalSize, 1)
		sizes <- remotecommand.TerminalSize{Width: 132, Height: 43}
		close(sizes)
		options.TerminalSizeQueue = oneSize{sizes}
	} else {
		options.Stderr = os.Stderr
	}
	return executor.StreamWithContext(context.Background(), options)
}

// forward opens a hundred connections to ports 1000 and up and expects each to echo, after its port, what it was sent.
func forward(transport, address string) error {
	target, err := url.Parse(address)
	if err != nil {
		return err
	}
	config := &rest.Config{Host: target.Host}
	var dialer httpstream.Dialer
	if transport == "spdy" {
		roundTripper, upgrader, err := spdy.RoundTripperFor(config)
		if err != nil {
			return err
		}
		dialer = spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: roundTripper}, "POST", target)
	} else {
		dialer, err = portforward.NewSPDYOverWebsocketDialerForStreaming(target, config)
		if err != nil {
			return err
		}
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	var ports []string
	for port := 1000; port < 1010; port++ {
		ports = append(ports, fmt.Sprintf(":%d", port))
	}
	forwarder, err := portforward.NewForStreaming(dialer, ports, stop, ready, io.Discard, os.Stderr)
	if err != nil {
		return err
	}
	over := make(chan error, 1)
	go func() { over <- forwarder.ForwardPorts() }()
	select {
	case err := <-over:
		return fmt.Errorf("forwarder ended: %w", err)
	case <-ready:
	}
	listening, err := forwarder.GetPorts()
	if err != nil {
		return err
	}
	var wait sync.WaitGroup
	failures := make(chan error, 100)
	for connection := range 100 {
		port := listening[connection%len(listening)]
		wait.Add(1)
		go func() {
			defer wait.Done()
			failures <- echo(int(port.Local), int(port.Remote))
		}()
	}
	wait.Wait()
	close(failures)
	for failure := range failures {
		err = errors.Join(err, failure)
	}
	close(stop)
	return err
}

func echo(local, remote int) error {
	conn, err := net.Dial("tcp", net.JoinHostPort("localhost", strconv.Itoa(local)))
	if err != nil {
		return err
	}
	defer conn.Close()
	sent := bytes.Repeat([]byte("coracle "), 10000)
	go func() {
		conn.Write(sent)
		conn.(*net.TCPConn).CloseWrite()
	}()
	answer, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	if expected := append([]byte(strconv.Itoa(remote)), sent...); !bytes.Equal(answer, expected) {
		return fmt.Errorf("port %d answered %d bytes instead of %d", remote, len(answer), len(expected))
	}
	return nil
}

// serve prints the addresses of a command, of one with a terminal and of ports, and serves until its input ends.
func serve() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	config := streaming.DefaultConfig
	config.Addr = listener.Addr().String()
	server, err := streaming.NewServer(config, runtime{})
	if err != nil {
		return err
	}
	go http.Serve(listener, server)
	plain, err := server.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"sh"}, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		return err
	}
	terminal, err := server.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"sh"}, Stdin: true, Stdout: true, Tty: true})
	if err != nil {
		return err
	}
	ports, err := server.GetPortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p"})
	if err != nil {
		return err
	}
	fmt.Printf("%s\n%s\n%s\n", plain.Url, terminal.Url, ports.Url)
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

type runtime struct{}

// Exec echoes its input; with a terminal it says its first size before. It ends with code 42.
func (runtime) Exec(_ context.Context, _ string, _ []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan serving.TerminalSize) error {
	if tty {
		size := <-resize
		fmt.Fprintf(out, "%dx%d ", size.Width, size.Height)
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	if errs != nil {
		io.WriteString(errs, "done")
	}
	return exitcodes.CodeExitError{Err: errors.New("code 42"), Code: 42}
}

func (r runtime) Attach(ctx context.Context, id string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan serving.TerminalSize) error {
	return r.Exec(ctx, id, nil, in, out, errs, tty, resize)
}

// PortForward echoes after its port; port 1 refuses.
func (runtime) PortForward(_ context.Context, _ string, port int32, stream io.ReadWriteCloser) error {
	if port == 1 {
		return errors.New("connection refused")
	}
	data, err := io.ReadAll(stream)
	if err != nil {
		return err
	}
	_, err = stream.Write(append([]byte(strconv.Itoa(int(port))), data...))
	return err
}
