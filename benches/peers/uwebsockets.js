// Repeats what a client sends to all others in the room that its path names.
const uws = require('uwebsockets');

const port = Number(process.argv[2]);
uws.App()
  .ws('/*', {
    upgrade: (res, req, context) => {
      res.upgrade(
        { room: req.getUrl() },
        req.getHeader('sec-websocket-key'),
        req.getHeader('sec-websocket-protocol'),
        req.getHeader('sec-websocket-extensions'),
        context,
      );
    },
    open: (ws) => { ws.subscribe(ws.getUserData().room); },
    message: (ws, message, isBinary) => { ws.publish(ws.getUserData().room, message, isBinary); },
  })
  .listen('127.0.0.1', port, (socket) => {
    if (!socket) {
      console.error(`cannot listen on 127.0.0.1:${port}`);
      process.exit(1);
    }
  });
