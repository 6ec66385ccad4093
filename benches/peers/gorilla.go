// Repeats what a client sends to all others in the room that its path names, in one of two usual
// ways: a hub that hands each message to a writer goroutine per client, or a goroutine per send.
package main

import (
	"flag"
	"log"
	"net/http"
	"sync"

	"github.com/gorilla/websocket"
)

type client struct {
	conn *websocket.Conn
	send chan *websocket.PreparedMessage
}

type room struct {
	sync.Mutex
	clients map[*client]struct{}
}

type message struct {
	room *room
	from *client
	text *websocket.PreparedMessage
}

var (
	upgrader = websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	lock     sync.Mutex
	rooms    = map[string]*room{}
	hub      = make(chan message, 256)
)

func enter(path string, c *client) *room {
	lock.Lock()
	defer lock.Unlock()
	r := rooms[path]
	if r == nil {
		r = &room{clients: map[*client]struct{}{}}
		rooms[path] = r
	}
	r.Lock()
	r.clients[c] = struct{}{}
	r.Unlock()
	return r
}

func (r *room) leave(c *client) {
	r.Lock()
	delete(r.clients, c)
	r.Unlock()
	c.conn.Close()
}

// A client whose buffer is full is dropped, as in the library's chat example.
func (r *room) queue(from *client, text *websocket.PreparedMessage) {
	r.Lock()
	defer r.Unlock()
	for c := range r.clients {
		if c == from {
			continue
		}
		select {
		case c.send <- text:
		default:
			delete(r.clients, c)
			close(c.send)
		}
	}
}

func (r *room) spawn(from *client, text *websocket.PreparedMessage) {
	r.Lock()
	defer r.Unlock()
	var sends sync.WaitGroup
	for c := range r.clients {
		if c == from {
			continue
		}
		sends.Add(1)
		go func(c *client) {
			defer sends.Done()
			c.conn.WritePreparedMessage(text)
		}(c)
	}
	sends.Wait()
}

func write(c *client) {
	for text := range c.send {
		if c.conn.WritePreparedMessage(text) != nil {
			break
		}
	}
	c.conn.Close()
}

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "where to listen")
	mode := flag.String("mode", "hub", "hub or spawn")
	flag.Parse()
	if *mode == "hub" {
		go func() {
			for m := range hub {
				m.room.queue(m.from, m.text)
			}
		}()
	}
	http.HandleFunc("/", func(w http.ResponseWriter, req *http.Request) {
		conn, err := upgrader.Upgrade(w, req, nil)
		if err != nil {
			return
		}
		c := &client{conn: conn}
		if *mode == "hub" {
			c.send = make(chan *websocket.PreparedMessage, 256)
			go write(c)
		}
		r := enter(req.URL.Path, c)
		defer r.leave(c)
		for {
			kind, payload, err := conn.ReadMessage()
			if err != nil {
				return
			}
			text, err := websocket.NewPreparedMessage(kind, payload)
			if err != nil {
				return
			}
			if *mode == "hub" {
				hub <- message{r, c, text}
			} else {
				r.spawn(c, text)
			}
		}
	})
	log.Fatal(http.ListenAndServe(*addr, nil))
}
