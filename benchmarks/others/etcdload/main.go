// The load generator for etcd: speaks the lines of JSON that benchmarks/loadgen.py describes.
//
// Usage: etcdload SPEC ENDPOINT...
// "window": `concurrency` goroutines, each with one request outstanding, over up to 16 connections.
// "probe": one write after the other, each attempt bounded, for ever.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"go.etcd.io/etcd/clientv3"
)

const (
	keys         = 10000
	latenciesMax = 20000
	attempt      = 150 * time.Millisecond // of a probe: a write that went to the dead leader is never answered
)

type spec struct {
	Mode         string  `json:"mode"`
	Concurrency  int     `json:"concurrency"`
	PayloadBytes int     `json:"payload_bytes"`
	WarmupS      float64 `json:"warmup_s"`
	Seconds      float64 `json:"seconds"`
	Operation    string  `json:"operation"`
	FirstKey     int     `json:"first_key"`
	TimeoutS     float64 `json:"timeout_s"`
}

type line map[string]interface{}

var output sync.Mutex

func say(event string, values line) {
	values["event"] = event
	text, _ := json.Marshal(values)
	output.Lock()
	defer output.Unlock()
	fmt.Println(string(text))
}

func monotonic() float64 {
	var now syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&now)), 0)
	return float64(now.Sec) + float64(now.Nsec)/1e9
}

func cpu() float64 {
	var usage syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return float64(usage.Utime.Sec+usage.Stime.Sec) + float64(usage.Utime.Usec+usage.Stime.Usec)/1e6
}

func seconds(value float64) time.Duration {
	if value > 1e8 {
		value = 1e8
	}
	return time.Duration(value * float64(time.Second))
}

func connect(endpoints []string) *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return client
}

func key(asked spec, number int) string {
	return fmt.Sprintf("key-%012d", number%keys+asked.FirstKey)
}

func operation(asked spec, client *clientv3.Client, value string) func(context.Context, int) error {
	switch asked.Operation {
	case "set":
		return func(ctx context.Context, number int) error {
			_, err := client.Put(ctx, key(asked, number), value)
			return err
		}
	case "stale":
		return func(ctx context.Context, number int) error {
			_, err := client.Get(ctx, key(asked, number*100), clientv3.WithSerializable())
			return err
		}
	}
	return func(ctx context.Context, number int) error {
		_, err := client.Get(ctx, key(asked, number*100))
		return err
	}
}

type worker struct {
	latencies []float64
	_         [64]byte // a cache line of its own
}

func window(asked spec, endpoints []string, input *bufio.Reader) {
	value := strings.Repeat("v", asked.PayloadBytes)
	connections := int(math.Min(16, math.Ceil(float64(asked.Concurrency)/64)))
	clients := make([]*clientv3.Client, connections)
	for number := range clients {
		clients[number] = connect(endpoints)
		defer clients[number].Close()
	}
	for number := 0; asked.Operation != "set" && number < keys; number += 100 {
		clients[0].Put(context.Background(), key(asked, number), value)
	}
	say("ready", line{})
	if _, err := input.ReadString('\n'); err != nil {
		return
	}
	var number, count, failed int64
	var measuring, stopping int32
	workers := make([]worker, asked.Concurrency)
	var all sync.WaitGroup
	for which := range workers {
		all.Add(1)
		go func(mine *worker, act func(context.Context, int) error) {
			defer all.Done()
			for atomic.LoadInt32(&stopping) == 0 {
				at := atomic.AddInt64(&number, 1)
				start := time.Now()
				ctx, cancel := context.WithTimeout(context.Background(), seconds(asked.TimeoutS))
				err := act(ctx, int(at))
				cancel()
				if atomic.LoadInt32(&measuring) == 0 {
					continue
				}
				if err != nil {
					atomic.AddInt64(&failed, 1)
					continue
				}
				atomic.AddInt64(&count, 1)
				mine.latencies = append(mine.latencies, float64(time.Since(start))/1e6)
			}
		}(&workers[which], operation(asked, clients[which%connections], value))
	}
	time.Sleep(seconds(asked.WarmupS))
	say("measuring", line{})
	begin, cpuBefore := time.Now(), cpu()
	atomic.StoreInt32(&measuring, 1)
	for left := seconds(asked.Seconds); left > 0; left = seconds(asked.Seconds) - time.Since(begin) {
		if left > 500*time.Millisecond {
			left = 500 * time.Millisecond
		}
		time.Sleep(left)
		say("progress", line{"count": atomic.LoadInt64(&count)})
	}
	atomic.StoreInt32(&measuring, 0)
	elapsed, done, errors, used := time.Since(begin).Seconds(), atomic.LoadInt64(&count), atomic.LoadInt64(&failed), cpu()-cpuBefore
	say("measured", line{})
	atomic.StoreInt32(&stopping, 1)
	all.Wait()
	var latencies []float64
	for which := range workers {
		latencies = append(latencies, workers[which].latencies...)
	}
	step := len(latencies)/latenciesMax + 1
	sample := []float64{}
	for at := 0; at < len(latencies); at += step {
		sample = append(sample, latencies[at])
	}
	names := line{}
	if errors > 0 {
		names["failed"] = errors
	}
	say("done", line{"count": done, "seconds": elapsed, "errors": names, "cpu_s": used, "latencies_ms": sample})
}

type question struct {
	At    float64 `json:"at"`
	Until float64 `json:"until"`
}

func probe(asked spec, endpoints []string, input *bufio.Reader) {
	value := strings.Repeat("v", asked.PayloadBytes)
	client := connect(endpoints)
	defer client.Close()
	questions := make(chan question, 1)
	go func() {
		for {
			text, err := input.ReadString('\n')
			if err != nil {
				os.Exit(0)
			}
			var next question
			json.Unmarshal([]byte(text), &next)
			questions <- next
		}
	}()
	say("ready", line{})
	var open bool
	var now question
	var errors int
	var gap, recovered float64
	last := monotonic()
	for number := 0; ; number++ {
		start := monotonic()
		ctx, cancel := context.WithTimeout(context.Background(), attempt)
		_, err := client.Put(ctx, key(asked, number), value)
		cancel()
		if err != nil {
			errors++
			continue
		}
		end := monotonic()
		if !open {
			select {
			case now = <-questions:
				open, gap, recovered = true, 0, 0
			default:
			}
		}
		if open {
			gap = math.Max(gap, end-math.Max(last, now.At))
			if recovered == 0 && start >= now.At {
				recovered = end
			}
			if recovered != 0 && end >= now.Until {
				say("recovered", line{"recovered_s": recovered, "gap_s": gap, "errors": errors})
				open, errors = false, 0
			}
		}
		last = end
	}
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: etcdload SPEC ENDPOINT...")
		os.Exit(2)
	}
	var asked spec
	if err := json.Unmarshal([]byte(os.Args[1]), &asked); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	input := bufio.NewReader(os.Stdin)
	if asked.Mode == "probe" {
		probe(asked, os.Args[2:], input)
		return
	}
	window(asked, os.Args[2:], input)
}
