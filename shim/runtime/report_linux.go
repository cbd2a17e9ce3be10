package runtime

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// report tells a caller about an error in the way runc does.
func report(stderr io.Writer, inv Invocation, err error) {
	message, remedy := "declarun: "+plain(err.Error()), remedyOf(err)
	fmt.Fprintln(stderr, message)
	if remedy != "" {
		fmt.Fprintln(stderr, "declarun: try: "+remedy)
		message += " (try: " + remedy + ")"
	}
	if inv.Log == "" || inv.Log == "/dev/stderr" {
		return
	}
	// Not blocking: the log may be a FIFO that nobody reads.
	f, err := os.OpenFile(inv.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND|unix.O_NONBLOCK|unix.O_NOCTTY, 0o644)
	if err != nil {
		fmt.Fprintln(stderr, "declarun: "+plain(fmt.Sprintf("open --log: %v", err)))
		return
	}
	defer f.Close()
	if _, err := f.WriteString(logRecord(inv.LogFormat, message, time.Now())); err != nil {
		fmt.Fprintln(stderr, "declarun: "+plain(fmt.Sprintf("write --log: %v", err)))
	}
}

// logRecord is one line as logrus, runc's logger, writes it. Engines read the
// last JSON record with level "error"; Podman reads the file as one record, so
// there is never more than one from here.
func logRecord(format, message string, now time.Time) string {
	stamp := now.Format(time.RFC3339)
	if format == "json" {
		line, err := json.Marshal(struct {
			Level   string `json:"level"`
			Message string `json:"msg"`
			Time    string `json:"time"`
		}{"error", message, stamp})
		if err == nil {
			return string(line) + "\n"
		}
	}
	return fmt.Sprintf("time=%q level=error msg=%q\n", stamp, message)
}
